"""The public face as literals: whoever changes a name, an argument or an error changes this."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jsonckpt
from jsonckpt._src.convert.options import ConvertArguments
from jsonckpt.convert import ConvertOptions, convert

NAMES = [
    "ArgumentError",
    "Checkpoint",
    "CheckpointExistsError",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "Diff",
    "DurabilityUncertainError",
    "FormatError",
    "FoundCheckpoint",
    "FoundCheckpoints",
    "GcReport",
    "IncompleteCheckpointError",
    "Inspection",
    "IntegrityError",
    "JsonckptError",
    "LimitError",
    "Limits",
    "LoadResult",
    "LostTensor",
    "PendingSave",
    "RecoverReport",
    "Report",
    "SaveCancelledError",
    "SaveResult",
    "SavedStep",
    "StateMismatchError",
    "TensorEntry",
    "TrainState",
    "UnsafePathError",
    "UnsupportedTypeError",
    "UnsupportedVersionError",
    "VerifyReport",
    "WriteError",
    "__version__",
    "diff",
    "export_reader",
    "find",
    "gc",
    "inspect",
    "load",
    "load_into",
    "open",
    "recover",
    "register",
    "report",
    "save",
    "save_async",
    "stream",
    "verify",
]

#: Arguments in order; "*" stands before those that go by name only.
SIGNATURES = {
    "save": (
        "state, path, *, encoding='base64', compression=None, compression_level=None, "
        "filter='auto', chunk_size='1MiB', max_shard_size=None, checksum='xxh3_128', "
        "save_id=None, metadata=None, overwrite=True, delete_first=False, threads=None, "
        "progress=False, storage_options=None, sync=True, with_reader=False, unchanged_from=None, "
        "frozen=None, single_file=None"
    ),
    "save_async": (
        "state, path, *, encoding='base64', compression=None, compression_level=None, "
        "filter='auto', chunk_size='1MiB', max_shard_size=None, checksum='xxh3_128', "
        "save_id=None, metadata=None, overwrite=True, delete_first=False, threads=1, "
        "progress=False, storage_options=None, sync=True, with_reader=False, unchanged_from=None, "
        "frozen=None, single_file=None, keep_buffers=True"
    ),
    "load": (
        "path, map_location=None, *, include=None, exclude=None, weights_only=True, verify=True, "
        "threads=None, progress=False, limits=None, storage_options=None, expected_digest=None"
    ),
    "load_into": (
        "target, path, *, strict=True, include=None, exclude=None, cast=False, "
        "strip_prefix=None, verify=True, threads=None, progress=False, limits=None, "
        "storage_options=None, expected_digest=None"
    ),
    "open": (
        "path, *, verify=True, threads=None, limits=None, storage_options=None, "
        "expected_digest=None"
    ),
    "inspect": "path, *, limits=None, storage_options=None, expected_digest=None",
    "stream": (
        "source, map_location=None, *, include=None, exclude=None, verify=True, limits=None, "
        "storage_options=None, expected_digest=None"
    ),
    "diff": ("a, b, *, stats=False, include=None, exclude=None, limits=None, storage_options=None"),
    "report": "paths, *, progress=False, threads=None, limits=None, storage_options=None",
    "verify": (
        "path, *, deep=False, threads=None, progress=False, limits=None, storage_options=None, "
        "expected_digest=None"
    ),
    "recover": (
        "path, out, *, save_id=None, trust_state=False, threads=None, limits=None, sync=True, "
        "storage_options=None"
    ),
    "find": "root, pattern=None, *, limits=None, storage_options=None",
    "CheckpointManager": (
        "directory, *, keep_last=None, keep_best=None, keep_every=None, every_steps=None, "
        "every_minutes=None, async_save=False, deadline=None, single_file=False, "
        "share_unchanged=False, on_error='raise', metadata=None, process_group=None, "
        "storage_options=None, save_options"
    ),
    "gc": (
        "path, *, older_than='24h', dry_run=False, abandoned=False, limits=None, "
        "storage_options=None"
    ),
    "register": "cls, tag=None, to_json=None, from_json=None",
}

FIELDS = {
    "Diff": ["a", "b", "changes", "same", "read"],
    "SaveResult": [
        "path",
        "save_id",
        "digest",
        "tensors",
        "nbytes",
        "stored_bytes",
        "files",
        "seconds",
        "durability",
        "pin",
        "notes",
        "reader_files",
        "reused_bytes",
    ],
    "LoadResult": [
        "loaded",
        "missing",
        "unexpected",
        "mismatched",
        "renamed",
        "kept",
        "hint",
    ],
    "SavedStep": [
        "step",
        "path",
        "save",
        "run",
        "status",
        "metrics",
        "time",
        "seconds",
        "bytes",
        "after",
        "problem",
    ],
    "GcReport": ["path", "removed", "kept", "nbytes", "dry_run", "uploads"],
    "LostTensor": ["name", "reason", "file", "chunk"],
    "RecoverReport": [
        "path",
        "out",
        "save_id",
        "state",
        "recovered",
        "lost",
        "nbytes",
        "notes",
    ],
    "VerifyReport": [
        "path",
        "problems",
        "tensors",
        "nbytes",
        "files",
        "notes",
        "digest",
        "pin",
    ],
    "Limits": [
        "manifest_bytes",
        "tensors",
        "chunks",
        "shards",
        "name_bytes",
        "rank",
        "chunk_bytes",
        "depth",
        "number_chars",
        "marks",
        "total_floor",
        "expansion",
        "zstd_window",
        "links",
    ],
}

#: Each error with its direct bases.
ERRORS = {
    "JsonckptError": ["Exception"],
    "FormatError": ["JsonckptError", "ValueError"],
    "UnsupportedVersionError": ["FormatError"],
    "UnsafePathError": ["FormatError"],
    "ArgumentError": ["JsonckptError", "ValueError", "TypeError"],
    "LimitError": ["JsonckptError", "ValueError"],
    "IntegrityError": ["JsonckptError"],
    "IncompleteCheckpointError": ["JsonckptError"],
    "CheckpointNotFoundError": ["JsonckptError", "FileNotFoundError"],
    "CheckpointExistsError": ["JsonckptError", "FileExistsError"],
    "SaveCancelledError": ["JsonckptError"],
    "StateMismatchError": ["JsonckptError"],
    "UnsupportedTypeError": ["JsonckptError", "TypeError"],
    "WriteError": ["JsonckptError", "OSError"],
    "DurabilityUncertainError": ["WriteError"],
}


def arguments(function: Any) -> str:
    parts = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            parts.append("*")
        default = parameter.default
        given = "" if default is inspect.Parameter.empty else f"={default!r}"
        parts.append(parameter.name + given)
    return ", ".join(parts)


def test_the_names() -> None:
    assert sorted(jsonckpt.__all__) == NAMES
    assert all(hasattr(jsonckpt, name) for name in NAMES)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    assert arguments(getattr(jsonckpt, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_results(name: str) -> None:
    assert list(getattr(jsonckpt, name).__dataclass_fields__) == FIELDS[name]


@pytest.mark.parametrize("name", ERRORS)
def test_the_tree_of_errors(name: str) -> None:
    assert [base.__name__ for base in getattr(jsonckpt, name).__bases__] == ERRORS[name]


def test_every_error_is_listed() -> None:
    classes = [name for name in NAMES if name.endswith("Error")]
    assert sorted(ERRORS) == sorted(classes)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_says_what_it_is(name: str) -> None:
    if name != "__version__":
        assert inspect.getdoc(getattr(jsonckpt, name))


def test_errors_carry_what_a_program_asks_for() -> None:
    error = jsonckpt.WriteError("no", errno=28, file="a", tensor="/w", chunk=3, hint="Do.")
    assert (error.errno, error.file, error.tensor, error.chunk) == (28, "a", "/w", 3)
    assert str(error) == "a: tensor '/w': chunk 3: no. Do."
    mismatch = jsonckpt.StateMismatchError("x", missing=["/a"], unexpected=["/b"], mismatched=["c"])
    assert (mismatch.missing, mismatch.unexpected, mismatch.mismatched) == (["/a"], ["/b"], ["c"])
    assert str(mismatch) == "x\n  missing: '/a'\n  unexpected: '/b'\n  mismatched: 'c'"


def test_what_a_pending_save_can_do() -> None:
    doors = {
        name: arguments(method)
        for name, method in vars(jsonckpt.PendingSave).items()
        if not name.startswith("_")
    }
    assert doors == {"done": "self", "result": "self, timeout=None", "cancel": "self"}


def test_names_are_imported_when_they_are_used() -> None:
    """The table of lazy names says the same as the imports that type checkers read."""
    source = Path(jsonckpt.__file__).read_text("utf-8")
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                assert line.module is not None
                for alias in line.names:
                    module = line.module.removeprefix("jsonckpt._src.")
                    found[alias.asname or alias.name] = (module, alias.name)
    assert found.pop("training") == ("jsonckpt", "training")
    assert found.pop("edit") == ("jsonckpt", "edit")
    assert found.pop("torch_compat") == ("jsonckpt", "torch_compat")
    assert found.pop("convert") == ("jsonckpt.convert", "convert")
    assert found == jsonckpt._LAZY
    assert set(dir(jsonckpt)) >= {*jsonckpt.__all__, "convert", "torch_compat", "training"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jsonckpt.nothing  # noqa: B018


@pytest.mark.parametrize("first", ["import torch", "pass"])
def test_modules_are_attributes(first: str, tmp_path: Path) -> None:
    code = f"""
{first}
import jsonckpt
import os
import torch
jsonckpt.training.rng_state()
os.chdir({str(tmp_path)!r})
torch.save({{"a": 1}}, "a.pt")
print(jsonckpt.convert("a.pt").output.name, jsonckpt.load("a.json"))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.stdout == "a.json {'a': 1}\n", done.stderr


def test_the_options_of_a_conversion_are_typed() -> None:
    options = {option.name: option.type for option in dataclasses.fields(ConvertOptions)}
    typed = {name: hint.__forward_arg__ for name, hint in ConvertArguments.__annotations__.items()}
    assert typed == options
    shown = inspect.signature(convert).parameters
    assert list(shown)[3:] == list(options)
