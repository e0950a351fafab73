"""What commands print: nothing that does something to a terminal, and one line where it fails."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main
from jsonckpt._src.errors import printable, quote
from jsonckpt._src.progress import progress_bar, tell
from jsonckpt._src.save import snapshot
from jsonckpt._src.terminal.console import EXIT_OUTPUT, complain, say

#: Escape sequences, BEL, C1, DEL, bidirectional controls, separators, zero width.
EVIL = "e\x1b]0;x\x07\x9b31m\x7f\u202ev\u2066i\u200f\u061c\u2028\u2029\u200bl\x85"
#: As part of a file's name, where the system allows it.
NAME = EVIL + "\nforged: ok"


def clean(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_printable() -> None:
    assert clean(printable(EVIL + "\ud800"))
    assert printable("é 日本 \U0001f600 a\\b") == "é 日本 \U0001f600 a\\b"
    assert printable("a\nb\tc") == "a\\nb\\tc"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert clean(quote(EVIL, 1_000))


def test_every_error_is_printable() -> None:
    for text in (
        str(jsonckpt.JsonckptError(EVIL, file=NAME, tensor=NAME, hint=EVIL)),
        str(
            jsonckpt.StateMismatchError(EVIL, missing=[NAME], unexpected=[EVIL], mismatched=[EVIL])
        ),
        str(jsonckpt.LostTensor(NAME, EVIL, EVIL)),
        str(jsonckpt.GcReport(NAME, (NAME,), (NAME,), 0, False)),
        str(jsonckpt.VerifyReport(NAME, (jsonckpt.FormatError(EVIL),), notes=(NAME,))),
        str(jsonckpt.RecoverReport(NAME, NAME, "", "lost", (), (), 0, (NAME,))),
    ):
        assert clean(text)
        assert "\nforged" not in text


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints of which every text is hostile, under a hostile name."""
    monkeypatch.setattr(snapshot, "created_by", lambda: EVIL)
    room = tmp_path / NAME
    room.mkdir()
    shared = torch.ones(2)
    state = {EVIL: {NAME: torch.zeros(3)}, "a\x9b": shared, "b\u202e": shared, "n": [EVIL]}
    metadata = {NAME: [EVIL, {EVIL: NAME}]}
    jsonckpt.save(state, room / "c", metadata=metadata)
    jsonckpt.save(state, room / "c.json", metadata=metadata)
    torch.save(state, room / "x.pt")
    damaged = (room / "c.json").read_bytes().replace(b'"AAAA', b'"BAAA', 1)
    (room / "damaged.json").write_bytes(damaged)
    (room / "cut.json").write_bytes(damaged[:-300])
    (room / "c" / "other\x1b[31m").write_text("")
    for left in (
        f".{NAME}.json.0123456789ab.tmp",
        ".c.0123456789ab.tmp",
        ".c.json.0123456789ab.tmp",
    ):
        (room / left).write_text("")
        os.utime(room / left, (1, 1))
    return room


COMMANDS: dict[str, list[str]] = {
    "show": ["show", "c"],
    "show a file": ["show", "c.json"],
    "show what is not there": ["show", "d"],
    "show with a limit": ["show", "c", "--limit", "name_bytes=5"],
    "verify": ["verify", "c", "--deep"],
    "verify damage": ["verify", "damaged.json", "--deep"],
    "verify a cut": ["verify", "cut.json"],
    "recover": ["recover", "damaged.json", "out"],
    "recover a cut": ["recover", "cut.json", "out.json"],
    "recover onto something": ["recover", "c", "x.pt"],
    "gc": ["gc", "c", "--older-than", "1h"],
    "gc a file": ["gc", NAME + ".json", "--older-than", "1h", "--abandoned"],
    "convert": ["convert", "c", "-o", "y.safetensors"],
    "convert and compare": ["convert", "x.pt", "-o", "y.json", "--test-load"],
    "convert dry": ["convert", "c.json", "-o", "y.pt", "--dry-run"],
    "convert what is not there": ["convert", "d", "-o", "y.pt"],
    "convert damage": ["convert", "damaged.json", "-o", "y.pt"],
    "wrong usage": ["show", "c", "--limit", EVIL],
    "unknown argument": ["show", "c", EVIL],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_no_command_lets_control_characters_through(
    room: Path, capsys: pytest.CaptureFixture[str], name: str, as_json: bool
) -> None:
    known = {path.name for path in room.iterdir()} | {"d", "out", "out.json", NAME + ".json"}
    arguments = [
        str(room / item) if item in known or item.startswith("y.") else item
        for item in COMMANDS[name]
    ]
    main([*arguments, *(["--json"] if as_json else [])])
    printed = capsys.readouterr()
    assert printed.out + printed.err
    assert clean(printed.out)
    assert clean(printed.err)
    assert "\nforged" not in printed.out + printed.err
    if as_json and printed.out:
        assert "\x7f" not in printed.out
        assert isinstance(json.loads(printed.out), dict)


# --- outputs that fail ----------------------------------------------------------------------------


class Full(io.StringIO):
    """A standard output that takes nothing."""

    def __init__(self, number: int, at_flush: bool) -> None:
        super().__init__()
        self._number = number
        self._at_flush = at_flush

    def write(self, text: str, /) -> int:
        if self._at_flush:
            return len(text)
        raise OSError(self._number, os.strerror(self._number))

    def flush(self) -> None:
        raise OSError(self._number, os.strerror(self._number))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    jsonckpt.save({"w": torch.ones(3)}, tmp_path / "c.json")
    return tmp_path


WORK: dict[str, tuple[list[str], str]] = {
    "show": (["show", "c.json"], ""),
    "show --json": (["show", "c.json", "--json"], ""),
    "verify": (["verify", "c.json"], ""),
    "recover": (["recover", "c.json", "new"], "new"),
    "gc": (["gc", "c.json", "--older-than", "1h"], ""),
    "convert": (["convert", "c.json", "-o", "new.pt"], "new.pt"),
    "convert --json": (["convert", "c.json", "-o", "new.pt", "--json"], "new.pt"),
    "--help": (["--help"], ""),
    "--version": (["--version"], ""),
    "convert --help": (["convert", "--help"], ""),
}


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("at_flush", [False, True], ids=["write", "flush"])
def test_a_full_output(
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    at_flush: bool,
) -> None:
    arguments, made = WORK[name]
    monkeypatch.chdir(saved)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full(errno.ENOSPC, at_flush))
        assert main(arguments) == EXIT_OUTPUT
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "No space left on device" in told
    assert (saved / made).exists()


@pytest.mark.parametrize("name", WORK)
def test_a_closed_output(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments, made = WORK[name]
    monkeypatch.chdir(saved)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert main(arguments) == EXIT_OUTPUT
    assert capsys.readouterr().err.count("\n") == 1
    assert (saved / made).exists()


def test_a_reader_that_has_seen_enough(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full(errno.EPIPE, False))
        assert main(["show", str(saved / "c.json")]) == EXIT_OUTPUT
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", [None, Full(errno.EIO, False)], ids=["closed", "gone"])
def test_a_standard_error_that_fails_stops_nothing(
    saved: Path, monkeypatch: pytest.MonkeyPatch, stream: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        complain("nobody hears this")
        assert main(["show", str(saved / "no")]) == 1
        assert main(["verify", str(saved / "c.json")]) == 0
        assert main(["convert", str(saved / "c.json"), "-o", str(saved / "n.pt")]) == 0
        jsonckpt.save({"w": torch.ones(3)}, saved / "d", progress=True)
        with progress_bar("x", 3, show=True) as advance:
            if advance is not None:
                advance(3)
    if stream is not None:
        tell(stream, "nobody sees this")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_process_ends_without_a_traceback(saved: Path) -> None:
    command = f"{sys.executable} -m jsonckpt"
    for redirected in ("show c.json > /dev/full", "convert c.json -o new.pt >&-"):
        done = subprocess.run(
            ["sh", "-c", f"{command} {redirected}"],
            cwd=saved, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.returncode == EXIT_OUTPUT
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: standard output")
    assert (saved / "new.pt").exists()


def test_say_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[Callable[[object], None]] = [say, complain]
    for show in shown:
        show(f"a{EVIL}\nb")
    printed = capsys.readouterr()
    assert clean(printed.out)
    assert printed.out == printed.err
    assert printed.out.endswith("\nb\n")
