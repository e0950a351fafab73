"""Checks the paths and options that a caller passes: one rule for each mistake, everywhere."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ..errors import ArgumentError, JsonckptError, full_name, quote
from ..format.filenames import is_single
from .file_objects import is_file_object

#: A scheme (but not a Windows drive) with one slash instead of the two of a URL.
_LOST_SLASH = re.compile(r"(?:.*::)?([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_ORDER = "The order is save(state, path), load(path), load_into(target, path)."
#: Endings of names -> the kind of file that they stand for.
_KINDS = {
    "a PyTorch file": ".pt .pth .pt2 .ptl .ckpt .bin",
    "a safetensors file": ".safetensors",
    "a pickle": ".pkl .pickle .joblib .dill",
    "a NumPy file": ".npy .npz",
    "a model of another program": ".onnx .h5 .hdf5 .keras .gguf .ggml .pb .tflite .msgpack .mat",
    "an archive": ".zip .tar .tgz .7z .rar",
    "a compressed file": ".gz .bz2 .xz .lz4 .zst .zstd",
    "a text": ".txt .log .md .yaml .yml .toml .xml .html .ini .py .ipynb .ndjson",
    "a table": ".csv .tsv .parquet .arrow .feather .db .sqlite",
}
_KIND_OF = {end: kind for kind, ends in _KINDS.items() for end in ends.split()}
#: Names that are nearly those of single files: ``a.JSON``, ``a.json.gz``, ``a.jsonl``.
_NEARLY_JSON = re.compile(r"\.(geo)?json[a-z0-9]{0,2}(\.[a-z0-9]+)*~?$", re.IGNORECASE)


def is_url(path: str) -> bool:
    """Whether a path names a file system of fsspec.

    >>> is_url("s3://bucket/run"), is_url("runs/a.json")
    (True, False)
    """
    return "://" in path


def path_text(value: object, argument: str = "path", also: str = "") -> str:
    """An argument that must be a path, as text.

    A name that is most likely a mistake is refused, unless something has exactly this name.

    Args:
        argument: its name, for messages.
        also: other types that it may have, for messages.

    Raises:
        ArgumentError: it cannot be a path, or is most likely not the one that is meant.
        JsonckptError: it is a URL that lost a slash in ``pathlib``.

    >>> path_text("run/c.json")
    'run/c.json'
    """
    text = _text_of(value, argument, also)
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{argument} {quote(text)} cannot be the name of a file") from error
    lost = _LOST_SLASH.match(text)
    if lost and not is_url(text):
        raise JsonckptError(
            f"{quote(text)} is a URL that has lost a slash, which pathlib.Path does",
            hint=f"Pass a string that begins with {lost[1]}://; a directory of that name is "
            f"./{lost[1]}:",
        )
    if "\0" in text:
        raise ArgumentError(f"{argument} {quote(text)} contains a NUL, which no path can")
    mistake = _mistake_in(text)
    if mistake is not None and (is_url(text) or not os.path.lexists(text)):
        raise ArgumentError(f"{argument} is {quote(text)}, {mistake[0]}", hint=mistake[1])
    return text


def _text_of(value: object, argument: str, also: str) -> str:
    if is_file_object(value, "read", "readinto", "write"):
        raise ArgumentError(
            f"{argument} is a file object, expected a path",
            hint="save, load and stream take file objects; give the path of the checkpoint here.",
        )
    try:
        text = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if isinstance(text, str):
        return text
    hint = _ORDER if argument == "path" else None
    if isinstance(text, bytes):
        hint = "os.fsdecode(path) makes a str; bytes in memory are loaded through io.BytesIO(data)."
    elif isinstance(getattr(value, "protocol", None), str):  # a path of universal_pathlib
        hint = "Pass str(path), which is its URL, and its storage_options."
    elif isinstance(name := getattr(value, "name", None), str) and hasattr(value, "cleanup"):
        hint = f"Pass its .name, {quote(name)}."
    elif callable(getattr(value, "open", None)) and not isinstance(value, type):
        hint = "Open it for bytes and pass the file object to save, load or stream."
    raise ArgumentError(
        f"{argument} must be str or os.PathLike[str]{also}, not {quote(full_name(type(value)))}",
        hint=hint,
    )


def _mistake_in(text: str) -> tuple[str, str] | None:
    """Why a name is most likely a mistake, and the way out; ``None`` if it is not."""
    if not text:
        return "an empty string", "Give a name; the working directory is '.'."
    if text != text.strip():
        return (
            "which begins or ends with white space",
            "Remove it: path.strip() does. Only a name that is there already may have it.",
        )
    if text.startswith("://") or text.endswith("://"):
        return "a URL that lacks a part", "A URL is such as s3://bucket/run."
    if text.startswith("~") or "://~" in text:
        return (
            "which begins with ~, and only a shell expands that",
            "Pass os.path.expanduser(path), or the absolute path if the name has it.",
        )
    if text == "-":
        return (
            "which is no name for a pipe here",
            "In Python, save takes sys.stdout.buffer, and load and stream take sys.stdin.buffer.",
        )
    return None


def check_target_name(path: str, argument: str = "path", *, also: str = "") -> None:
    """Check that the name of a new checkpoint is not that of another kind of file.

    Call it unless there is a directory at ``path``. A name without a known ending is fine:
    it becomes a directory.

    Args:
        also: a further way out, for the hint.

    Raises:
        ArgumentError: it looks like another kind of file.

    >>> check_target_name("run-1.5"), check_target_name("model.v2"), check_target_name("a.json")
    (None, None, None)
    """
    name = path.rstrip("/").rpartition("/")[2]
    if is_single(name):
        if not path.endswith("/"):
            return
        wrong = "ends in a slash, as a directory, but its suffix is that of a single file"
    elif _NEARLY_JSON.search(name):
        wrong = "is almost the name of a single file, which ends in .json or .json.zst"
    elif (end := os.path.splitext(f"_{name}".lower())[1]) in _KIND_OF:
        wrong = f"names {_KIND_OF[end]}, but checkpoints are JSON"
    else:
        return
    raise ArgumentError(
        f"{argument} {quote(path)} {wrong}",
        hint="End the name in .json or .json.zst for one file, or give a name without such an "
        f"ending for a directory. {also}jsonckpt convert writes .pt and .safetensors.",
    )


def check_storage_options(storage_options: object) -> None:
    """Check that the options for fsspec are a dictionary, or ``None``.

    Raises:
        ArgumentError: they are something else.
    """
    if storage_options is not None and not isinstance(storage_options, Mapping):
        raise ArgumentError(
            f"storage_options must be a dictionary, not {quote(type(storage_options).__name__)}"
        )


def without_query(url: str) -> str:
    """A URL for messages, without the query of a web address, which may hold a secret.

    >>> without_query("https://x.org/c.json?token=abc"), without_query("s3://b/why?")
    ('https://x.org/c.json', 's3://b/why?')
    """
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url
