"""``kaggle_init``: writes a data set's metadata and copies the readers beside the checkpoint."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import (
    ArgumentError,
    CheckpointNotFoundError,
    FormatError,
    JsonckptError,
    quote,
)
from ..find.api import find
from ..find.look import FoundCheckpoint
from ..format.filenames import temporary_name
from ..format.json_text import parse
from ..standalone.export import FILES, changes, export_reader
from ..storage.commit import commit
from ..storage.missing import hint_for_missing
from ..storage.new_file import mode_for
from ..storage.os_errors import read_error
from ..storage.path_arguments import is_url, path_text
from .folder import Folder
from .metadata import METADATA_NAME, check, merged

#: Bytes of a metadata file, at most.
_LARGEST = 1 << 20


@dataclass(frozen=True)
class KaggleDataset:
    """A directory that is ready for the upload.

    Attributes:
        path: the directory.
        metadata: what its ``dataset-metadata.json`` says.
        updated: whether there was one before.
        files: how many files the upload takes.
        nbytes: their size.
        copied: names of the files that were copied into it.
        warnings: what the upload leaves out or changes, as sentences.
        commands: the next commands.
    """

    path: str
    metadata: dict[str, Any]
    updated: bool
    files: int
    nbytes: int
    copied: tuple[str, ...]
    warnings: tuple[str, ...]
    commands: tuple[str, ...]


def kaggle_init(
    directory: str | os.PathLike[str],
    *,
    id: str | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    license: str | None = None,
    description: str | None = None,
    keywords: Sequence[str] | None = None,
    with_reader: bool = True,
) -> KaggleDataset:
    """Make a directory ready to be a data set on Kaggle. Nothing is sent.

    Writes ``dataset-metadata.json``. If there is one, what is not given here stays as it is.

    Args:
        directory: what is to be uploaded: a checkpoint's directory, or one that holds files.
        id: ``"owner/slug"``; required unless the file says it.
        title: 6 to 50 characters; by default made of the slug.
        subtitle: 20 to 80 characters.
        license: a license that Kaggle knows; by default ``"other"``.
        description, keywords: of the data set.
        with_reader: also copy ``jsonckpt_reader.py`` and ``checkpoint_to_json.py``, so that a
            notebook reads the checkpoint with nothing installed.

    Raises:
        CheckpointExistsError: another file has the name of a reader. Nothing is written.
        ArgumentError: a rule of Kaggle is broken; the message says it. Nothing is written.
        CheckpointNotFoundError: there is no such directory.
        FormatError: the file that is there is not a JSON object.
        LimitError: there are more than 50 files.
        WriteError: the directory cannot be written to.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as run:
    ...     _ = jsonckpt.save({"w": torch.ones(2)}, run)
    ...     made = kaggle_init(run, id="me/text-gen-checkpoint", with_reader=False)
    >>> made.metadata["title"], made.files
    ('Text gen checkpoint', 2)
    """
    path = _directory(directory)
    target = path / METADATA_NAME
    old = _read(target)
    given: dict[str, Any] = {"id": id, "title": title, "subtitle": subtitle, "license": license}
    given |= {"description": description, "keywords": None if keywords is None else list(keywords)}
    metadata = merged(old or {}, given)
    readers = FILES if with_reader else ()
    check(metadata, lambda name: _is_file(path, name) or name in readers)
    folder = _folder(path)
    folder.check_count(sum(name not in folder.files for name in readers))
    if with_reader:
        changes(path)  # refuses to replace other files of these names, before anything is written
    uploaded = [one for one in find(path) if _is_uploaded(one, path)]
    _write(target, json.dumps(metadata, indent=2) + "\n")
    if with_reader:
        export_reader(path)
    folder = _folder(path)
    return KaggleDataset(
        str(path),
        metadata,
        old is not None,
        len(folder.files),
        folder.nbytes,
        readers,
        (*folder.warnings(), *_of_checkpoints(uploaded)),
        _commands(path, uploaded),
    )


def _directory(directory: str | os.PathLike[str]) -> Path:
    text = path_text(directory, "directory")
    path = Path(text)
    if is_url(text) or path.is_file():
        raise ArgumentError(
            f"directory is {quote(text, 200)}, which is a {'URL' if is_url(text) else 'file'}",
            hint="A data set is a directory: put the files to upload into one of their own.",
        )
    if not path.is_dir():
        raise CheckpointNotFoundError(
            "there is no such directory", file=path, hint=hint_for_missing(path)
        )
    return path


def _is_file(directory: Path, name: str) -> bool:
    # Names come from a file: none may lead out of the directory.
    if name != os.path.basename(name) or "\0" in name:
        return False
    return (directory / name).is_file()


def _folder(path: Path) -> Folder:
    try:
        return Folder.of(path)
    except OSError as error:
        raise read_error(error, str(path), opening=True) from error


def _read(target: Path) -> dict[str, Any] | None:
    """The metadata that is there; ``None`` if there is none."""
    try:
        with target.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise read_error(error, str(target), opening=True) from error
    hint = "Mend it, or remove it and run kaggle-init again."
    if len(text) > _LARGEST:
        raise FormatError(f"the file has more than {_LARGEST} bytes", file=target, hint=hint)
    try:
        value = parse(text, what="the file")
    except JsonckptError as error:
        error.hint = hint
        raise error.at(file=target) from error.__cause__
    if not isinstance(value, dict):
        raise FormatError("the file is not a JSON object", file=target, hint=hint)
    return value


def _write(target: Path, text: str) -> None:
    temporary = target.with_name(temporary_name(target.name, secrets.token_hex(6)))
    commit(temporary, target, text.encode("ascii"), sync=True, mode=mode_for(target))


def _is_uploaded(one: FoundCheckpoint, directory: Path) -> bool:
    """Whether a checkpoint is the directory itself, or a file directly in it."""
    path = Path(one.path)
    return path == directory or (path.parent == directory and not path.is_dir())


def _of_checkpoints(uploaded: Sequence[FoundCheckpoint]) -> list[str]:
    said = [f"not a whole checkpoint: {one.name}: {one.problem}" for one in uploaded if one.torn]
    if not any(one.valid for one in uploaded):
        said.append("no checkpoint of jsonckpt is among the files to upload")
        said += [
            f"{one.name}: {one.kind}. Convert it first: jsonckpt convert PATH -o NEW.json"
            for one in uploaded
            if one.convertible
        ]
    return said


def _commands(path: Path, uploaded: Sequence[FoundCheckpoint]) -> tuple[str, ...]:
    where = shlex.quote(str(path))
    step = next((one.step for one in uploaded if one.valid), None)
    message = "new version" if step is None else f"step {step}"
    return (
        f"kaggle datasets create -p {where}",
        f'kaggle datasets version -p {where} -m "{message}"',
    )
