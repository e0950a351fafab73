"""The text that ``train_text_generation.py`` trains on, and a tokenizer made from it on the spot.

The text is what ``help()`` shows for the topics of the Python language: about half a megabyte of
English that comes with every Python, a little different in each version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

END_OF_TEXT = "<|endoftext|>"
TOKENIZER = "tokenizer.json"


def training_text() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(f"{name}\n{topics[name]}{END_OF_TEXT}" for name in sorted(topics))


def get_tokenizer(text: str, vocabulary: int, output: Path, beside: Path | None) -> Any:
    """The run's tokenizer, a byte-level BPE, which is then also in ``output``.

    It is taken from ``output``, else from ``beside`` (the directory of the checkpoint), else
    trained. The training is deterministic, so where the file is lost the same one comes out.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    known = [folder / TOKENIZER for folder in (output, beside) if folder is not None]
    known = [path for path in known if path.is_file()]
    if known:
        tokenizer = Tokenizer.from_file(str(known[0]))
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator([text], trainer)
    replace_file(output / TOKENIZER, tokenizer.to_str(pretty=True))
    return tokenizer


def get_samples(
    tokenizer: Any, text: str, length: int, limit: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and validation samples, each int64 of shape ``(samples, length)``.

    Args:
        limit: use no more samples than this; 0 for all.
    """
    ids = torch.tensor(tokenizer.encode(text).ids, dtype=torch.int64)
    samples = ids[: len(ids) // length * length].view(-1, length)
    if limit:
        samples = samples[:limit]
    if len(samples) < 10:
        raise SystemExit(f"{len(samples)} samples are too few: one of ten is for validation.")
    # Every tenth, because the end of the text alone would be about other subjects.
    validation = torch.arange(len(samples)) % 10 == 9
    return samples[~validation], samples[validation]


def replace_file(path: Path, text: str) -> None:
    """Write a small text file so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
