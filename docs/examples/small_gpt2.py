"""What ``train_text_generation.py`` trains: a small GPT-2, its loss, its learning rate, its export.

Nothing here knows of checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydoc_text
import torch


def transformers_library() -> Any:
    """transformers, imported late: it takes seconds, and ``--help`` and ``--prove`` need none."""
    import transformers

    hf: Any = transformers
    hf.logging.disable_progress_bar()
    return hf


def new_model(
    tokenizer: Any, *, length: int, width: int, layers: int, heads: int, dropout: float
) -> Any:
    """A GPT-2 with random weights, for samples of ``length`` tokens."""
    hf = transformers_library()
    end = tokenizer.token_to_id(pydoc_text.END_OF_TEXT)
    shape = hf.GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=end,
        eos_token_id=end,
        attn_implementation="eager",
    )
    return hf.GPT2LMHeadModel(shape)


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write what ``from_pretrained`` takes."""
    model.save_pretrained(folder)
    transformers_library().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=pydoc_text.END_OF_TEXT,
        eos_token=pydoc_text.END_OF_TEXT,
        model_max_length=model.config.n_positions,
    ).save_pretrained(folder)


def next_token_loss(model: Any, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mean over all tokens that have one before them; the model computes in ``dtype``."""
    with torch.autocast(tokens.device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=tokens, use_cache=False).logits
    predicted = logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(predicted, tokens[:, 1:].flatten())


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto" and device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if native else "float16"
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes.get(precision, torch.float32)


def warmup_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """The factor of the learning rate after ``n`` steps: up in a line, down to 0.1 in a cosine."""

    def factor(n: int) -> float:
        if n < warmup:
            return (n + 1) / warmup
        progress = min(1.0, (n - warmup) / max(1, total - warmup))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    return factor
