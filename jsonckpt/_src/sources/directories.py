"""Finds the weights in a directory of another program, and says what beside them is not taken.

It also names the directories that ``convert`` does not read.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import FormatError, listed, quote
from .kinds import WEIGHTS, Kind

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
_FILES = tuple(f"*{suffix}" for suffix in WEIGHTS)


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
            names = listed([file.name for file in found], 5)
            raise FormatError(f"a directory that holds {names}", hint="Give one of them.")
        if found:
            return found[0]
    return None


def notes_on_rest(directory: Path, weights: Path, parts: frozenset[str]) -> list[str]:
    """What is taken of a directory and what is not, a line for each kind of file.

    A directory without other known files needs no note.

    Args:
        directory: with the files.
        weights: the file that was read.
        parts: the names of further files that were read.
    """
    rest: dict[str, list[str]] = {}
    for file in sorted(directory.iterdir()):
        if not file.is_file() or file == weights or file.name in parts:
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
    arrays = False
    for file in directory.rglob("*"):  # it can be the root of a disk: the first other file decides
        if file.is_file():
            if file.suffix != ".npy":
                return False
            arrays = True
    return arrays


def _with(directory: Path, *patterns: str) -> Iterator[str]:
    """The names in a directory that match a pattern."""
    found = re.compile("|".join(map(fnmatch.translate, patterns)))
    yield from sorted(filter(found.fullmatch, os.listdir(directory)))


def _shows(*patterns: str, inside: tuple[str, ...] = ("",)) -> Callable[[Path], bool]:
    """A test: the directory, or one ``inside`` it, has an entry for one of the patterns."""
    return lambda directory: any(
        next(_with(directory / place, *patterns), None) is not None
        for place in inside
        if (directory / place).is_dir()
    )


_DIRECTORIES: list[tuple[Callable[[Path], bool], Kind]] = [
    (
        lambda directory: (directory / ".metadata").is_file() and _shows("*.distcp")(directory),
        Kind(
            "a distributed checkpoint (torch.distributed.checkpoint)",
            "Make one file of it first: python -m torch.distributed.checkpoint.format_utils "
            "dcp_to_torch DIRECTORY out.pt",
        ),
    ),
    (
        _shows("*.distcp"),
        Kind(
            "a distributed checkpoint (torch.distributed.checkpoint) without its .metadata",
            "Copy all of it, with the hidden file .metadata.",
        ),
    ),
    (
        _shows("zero_to_fp32.py", "*mp_rank_*_model_states.pt"),
        Kind(
            "a checkpoint of DeepSpeed, spread over its ranks",
            "Make one file of it first: python zero_to_fp32.py . out",
        ),
    ),
    (
        _shows("manifest.ocdbt", "_CHECKPOINT_METADATA", inside=("", "default", "params", "state")),
        Kind(
            "a checkpoint of Orbax",
            "In Python: tree = orbax.checkpoint.PyTreeCheckpointer().restore(DIRECTORY), then "
            "numpy.savez(OUT, **flax.traverse_util.flatten_dict(tree, sep='.')), and convert "
            "OUT.npz.",
        ),
    ),
    (
        _shows("saved_model.pb", "saved_model.pbtxt"),
        Kind(
            "a TensorFlow SavedModel",
            "In Python: model = tf.saved_model.load(DIRECTORY), then numpy.savez(OUT, **{v.name: "
            "v.numpy() for v in model.variables}), and convert OUT.npz.",
        ),
    ),
    (
        _shows("*.data-[0-9]*-of-[0-9]*"),
        Kind(
            "a checkpoint of TensorFlow",
            "In Python: r = tf.train.load_checkpoint(DIRECTORY), then numpy.savez(OUT, **{n: "
            "r.get_tensor(n) for n in r.get_variable_to_shape_map()}), and convert OUT.npz.",
        ),
    ),
    (
        _shows(".zarray", ".zgroup", "zarr.json"),
        Kind(
            "a Zarr store",
            "Read its arrays with zarr, save them with numpy.savez, and convert that file.",
        ),
    ),
]


def find_unpacked(directory: Path) -> Path | None:
    """The directory of an unpacked ``.pt``: ``directory`` itself, or one inside it."""
    candidates = [directory]
    if directory.is_dir():
        candidates += sorted(entry for entry in directory.iterdir() if entry.is_dir())
    found = [place for place in candidates if (place / "data.pkl").is_file()]
    if len(found) > 1 and found[0] != directory:
        names = ", ".join(quote(place.name) for place in found[:5])
        raise FormatError(
            f"{len(found)} unpacked checkpoints ({names})", file=directory, hint="Name one of them."
        )
    return found[0] if found else None


def kind_of_directory(directory: Path) -> Kind | None:
    """The kind of a directory that ``convert`` does not read, or ``None``."""
    for test, kind in _DIRECTORIES:
        if test(directory):
            return kind
    if (directory / "model_index.json").is_file():
        parts = [
            entry.name
            for entry in sorted(directory.iterdir())
            if entry.is_dir() and _shows("*.safetensors", "*.bin")(entry)
        ]
        return Kind(
            "a pipeline of diffusers: each of its folders is a model",
            f"Convert one of them: {', '.join(map(quote, parts[:8])) or 'they hold no weights'}.",
        )
    shards = list(_with(directory, "*-of-*.safetensors", "*-of-*.bin"))
    if shards:
        return Kind(
            f"a directory of shards ({quote(shards[0])}, …) without their index",
            "Copy the file *.index.json beside them.",
        )
    files = list(_with(directory, *_FILES))
    if not files:
        files = [entry.name for entry in sorted(directory.iterdir()) if _holds(entry)]
    if files:
        return Kind(
            f"a directory that holds {listed(files, 5)}",
            "Give one of them." if len(files) > 1 else "Give its path.",
        )
    return None


def _holds(directory: Path) -> bool:
    """True for a directory with a checkpoint of any kind."""
    return directory.is_dir() and (
        _shows("manifest.json", *_WEIGHTS, *_FILES)(directory)
        or any(test(directory) for test, _ in _DIRECTORIES)
    )
