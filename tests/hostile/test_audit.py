"""Loading runs nothing, imports nothing, writes nothing and calls nobody.

The child process watches all of Python's audit events while it loads; every test of this
folder asserts that none came that must not. Here: the golden files of the format, and that the
watch sees what it is there to see.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from tests.hostile.cases import doors_of, rescued
from tests.hostile.child import RESCUED, Watch
from tests.hostile.runner import Child

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"


def _golden() -> list[Path]:
    found = [*GOLDEN.glob("*.json"), *GOLDEN.glob("*.json.zst"), *GOLDEN.glob("*/manifest.json")]
    return sorted(path.parent if path.name == "manifest.json" else path for path in found)


@pytest.mark.parametrize("path", _golden(), ids=lambda path: path.name)
def test_golden_files(path: Path, child: Child) -> None:
    for door in doors_of(path):
        outcome = child.ask(path, door)
        assert not outcome.events, f"{door}: {outcome.events}"
        # Some hold types that this process has not registered.
        assert not outcome.error or "register" in outcome.message, f"{door}: {outcome}"


@pytest.mark.parametrize("path", _golden(), ids=lambda path: path.name)
def test_golden_files_whole_and_cut_are_rescued(path: Path, child: Child, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copy(path, copy)
    rescued(child, copy)
    shutil.rmtree(f"{copy}{RESCUED}")
    for file in copy.iterdir() if copy.is_dir() else [copy]:
        os.truncate(file, file.stat().st_size * 2 // 3)
    rescued(child, copy)


def test_there_are_golden_files() -> None:
    assert len(_golden()) > 10


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_the_watch_sees(tmp_path: Path) -> None:
    watch = Watch()

    def seen(action: object) -> str:
        watch.begin()
        try:
            assert callable(action)
            action()
        finally:
            events = watch.end()
        return " ".join(events)

    data = pickle.dumps(_Evil())
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    assert "pickle.find_class" in seen(lambda: pickle.loads(data))
    assert "os.system" in seen(lambda: pickle.loads(data))
    assert "pickle.find_class" in seen(lambda: torch.load(tmp_path / "w.pt", weights_only=False))
    assert "exec" in seen(lambda: exec("1"))
    assert "compile" in seen(lambda: compile("1", "", "eval"))
    assert "import" in seen(_import)
    assert "subprocess" in seen(lambda: subprocess.run(["true"], check=True))
    assert "socket" in seen(lambda: socket.socket().close())
    assert "writing" in seen(lambda: (tmp_path / "x").write_text(""))
    assert "os.remove" in seen(lambda: (tmp_path / "x").unlink())
    assert "os.mkdir" in seen(lambda: (tmp_path / "y").mkdir())
    assert not seen(lambda: (tmp_path / "w.pt").read_bytes())


def _import() -> None:
    with pytest.raises(ImportError):
        __import__("this_module_is_not_there")
