"""Copies the files that work without jsonckpt: ``export_reader``."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from importlib import resources
from pathlib import Path

from ..._version import __version__
from ..errors import ArgumentError, CheckpointExistsError
from ..format.filenames import temporary_name
from ..storage import commit
from ..storage.new_file import check_replaceable, mode_for
from ..storage.os_errors import writing
from ..storage.path_arguments import is_url, path_text

#: The files, the reader first.
FILES = ("jsonckpt_reader.py", "checkpoint_to_json.py")
_LINE = b"from __future__ import annotations"
#: A copy says on that line which release wrote it, and what the rest of it was.
_MARK = re.compile(_LINE + rb"(  # jsonckpt (\d+(?:\.\d+)*)\S*, sha256 ([0-9a-f]{64}))")
#: No copy is larger. Of a file of another kind no more is read.
_LARGEST = 1 << 20


def export_reader(directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write ``jsonckpt_reader.py`` and ``checkpoint_to_json.py`` to a directory.

    They read checkpoints where jsonckpt is not installed. The first needs only torch, the second
    the first. Directories on the way are made. An older copy is replaced, a newer one is kept.

    Args:
        directory: a local path.

    Returns:
        the paths of the two files.

    Raises:
        CheckpointExistsError: another file of that name is there, or a copy that somebody changed.
            Nothing is written then.
        WriteError: the system refused.
        ArgumentError: it is not a local path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     [path.name for path in export_reader(directory)]
    ['jsonckpt_reader.py', 'checkpoint_to_json.py']
    """
    text = path_text(directory, "directory")
    if is_url(text):
        raise ArgumentError(
            "directory is a URL, and the reader is written to local paths",
            hint="Write it to a local directory and copy the two files.",
        )
    place = Path(text)
    for name, content in changes(place).items():
        _replace(place / name, content)
    return tuple(place / name for name in FILES)


def changes(directory: Path) -> dict[str, bytes]:
    """What must be written so that a directory has the files.

    Raises:
        CheckpointExistsError: another file of that name is there.
    """
    found = {}
    for name in FILES:
        content, path = marked(name), directory / name
        if check_replaceable(path) is not None:
            with writing(path), path.open("rb") as file:
                old = file.read(_LARGEST).replace(b"\r\n", b"\n")
            release = _release_of(old)
            if release is None:
                raise CheckpointExistsError(
                    f"there is another file of this name, or a changed copy of jsonckpt's {name}",
                    file=path,
                    hint="Rename it, or choose another directory.",
                )
            if old == content or release > _numbers(__version__):
                continue
        found[name] = content
    return found


def marked(name: str) -> bytes:
    """The content of a copy."""
    content = (resources.files(__package__) / name).read_bytes()
    mark = f"  # jsonckpt {__version__}, sha256 {hashlib.sha256(content).hexdigest()}"
    return content.replace(_LINE, _LINE + mark.encode(), 1)


def _release_of(content: bytes) -> tuple[int, ...] | None:
    """The release that wrote an unchanged copy; ``None`` if it is anything else."""
    match = _MARK.search(content)
    if match is None:
        return None
    rest = content.replace(match[1], b"", 1)
    same = hashlib.sha256(rest).hexdigest() == match[3].decode()
    return _numbers(match[2].decode()) if same else None


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _replace(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it."""
    made: list[Path] = []
    temporary = path.with_name(temporary_name(path.name, secrets.token_hex(6)))
    try:
        commit.make_directory(path.parent, made, sync=True)
        commit.commit(temporary, path, content, sync=True, mode=mode_for(path))
    except BaseException:
        commit.remove_directories(made)
        raise
