"""Finds the weights in a directory of another program, and says what beside them is not taken."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import FormatError, quote

#: The names of the weights, in order of preference.
_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
    "model.json",
    "weights_manifest.json",
)
#: Other names, where a directory has just one of them.
_ANY = ("*.safetensors.index.json", "*.bin.index.json", "*.safetensors")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.(?:safetensors|bin)|group\d+-shard\d+of\d+(?:\.bin)?")
#: What to say of the files beside the weights: the first pattern that matches decides.
_REST: tuple[tuple[str, str], ...] = (
    (r"training_args\.bin", "not taken, and readable with --unsafe-pickle only"),
    (
        r"(?:optimizer|scheduler|scaler|rng_state|random_states|custom_checkpoint)\w*\.(?:pt|pth|bin|pkl)",
        "not taken: convert each on its own to keep it",
    ),
    (
        r".*\.(?:safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|ot|npz)(?:\.index\.json)?",
        "other weights, not taken: name the file to convert it",
    ),
    (
        r"(?:trainer_state|.*config|.*tokenizer.*|special_tokens_map|added_tokens|vocab|metadata)\.json"
        r"|vocab\.txt|merges\.txt|.*\.model|chat_template\.\w+",
        "not taken, and no checkpoint: copy them as they are",
    ),
)
_NAMES_SHOWN = 8


def find_weights(directory: Path) -> Path | None:
    """The file of the weights in a directory, or ``None``.

    Raises:
        FormatError: there are several, and none has a usual name.
    """
    for name in _WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    for pattern in _ANY:
        found = [
            file
            for file in sorted(directory.glob(pattern))
            if file.is_file() and not _SHARD.fullmatch(file.name)
        ]
        if len(found) > 1:
            names = ", ".join(quote(file.name) for file in found[:5])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise FormatError(f"a directory that holds {names}{more}", hint="Give one of them.")
        if found:
            return found[0]
    return None


def notes_on_rest(directory: Path, weights: Path) -> list[str]:
    """What is taken of a directory and what is not, a line for each kind of file.

    A directory without other known files needs no note.
    """
    rest: dict[str, list[str]] = {}
    for file in sorted(directory.iterdir()):
        if not file.is_file() or file == weights or _SHARD.fullmatch(file.name):
            continue
        for pattern, words in _REST:
            if re.fullmatch(pattern, file.name):
                rest.setdefault(words, []).append(file.name)
                break
    if not rest:
        return []
    notes = [f"taken: {weights.name}"]
    for words in dict(_REST).values():
        if names := rest.get(words):
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            notes.append(f"{words}: {', '.join(names[:_NAMES_SHOWN])}{more}")
    return notes


def is_unpacked_npz(directory: Path) -> bool:
    """True for a directory with arrays of NumPy and nothing else."""
    files = [file for file in directory.rglob("*") if file.is_file()]
    return bool(files) and all(file.suffix == ".npy" for file in files)
