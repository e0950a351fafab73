"""save_async and other processes: exits, forks and kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import jsonckpt
from tests.support import same


class Nursery:
    """One process that has imported torch, and children of it that run scripts."""

    CODE = """
        import os, sys, threading, time, torch, warnings
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        import jsonckpt
        from jsonckpt._src.save import api

        def hold_up(until):
            real = os.pwritev
            def pwritev(*arguments):
                while not until():
                    time.sleep(0.001)
                return real(*arguments)
            os.pwritev = pwritev

        for line in sys.stdin:
            script = line.encode().decode("unicode_escape")
            child = os.fork()
            if child == 0:
                sys.stdin.close()
                sys.stdout = sys.stderr = None
                errors = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(errors, 2)
                sys.stderr = open(2, "w")
                exec(script)
                sys.exit()
            print(child, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """

    def __init__(self, directory: Path) -> None:
        self.errors = directory / "stderr"
        self._parent = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.CODE), str(self.errors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def start(self, script: str) -> int:
        assert self._parent.stdin is not None
        code = textwrap.dedent(script).encode("unicode_escape").decode()
        self._parent.stdin.write(code + "\n")
        return self._number()

    def finish(self) -> int:
        return self._number()

    def run(self, script: str) -> tuple[int, str]:
        self.start(script)
        return self.finish(), self.errors.read_text()

    def close(self) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()

    def _number(self) -> int:
        assert self._parent.stdout is not None
        return int(self._parent.stdout.readline())


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


SAVE = """
    hold_up(lambda: not threading.main_thread().is_alive())
    state = {{"w": torch.arange(9999.0), "epoch": 7}}
    pending = jsonckpt.save_async(state, {path!r}, chunk_size=4096)
    assert not pending.done()
    state["w"].fill_(0)
"""


@pytest.mark.parametrize(
    ("name", "end", "code", "says"),
    [
        ("c", "", 0, ""),
        ("c", "sys.exit(3)", 3, ""),
        ("c.json", "raise ValueError('oh')", 1, "ValueError: oh"),
        ("c.json", "pending = None", 0, ""),
    ],
    ids=["the end", "sys.exit", "an exception", "dropped"],
)
def test_the_interpreter_waits(
    tmp_path: Path, nursery: Nursery, name: str, end: str, code: int, says: str
) -> None:
    path = tmp_path / name
    script = textwrap.dedent(SAVE.format(path=str(path))) + end
    found, errors = nursery.run(script)
    # exec() in a forked child of a loop: an exception ends the child with its traceback.
    assert found == code, errors
    assert says in errors
    assert "jsonckpt:" not in errors
    assert same(jsonckpt.load(path), {"w": torch.arange(9999.0), "epoch": 7})
    assert jsonckpt.verify(path)


def test_an_exit_function_that_saves(tmp_path: Path, nursery: Nursery) -> None:
    path = str(tmp_path / "c")
    script = f"""
        import atexit
        atexit.register(lambda: jsonckpt.save_async({{"w": torch.ones(9)}}, {path!r}))
    """
    assert nursery.run(script) == (0, "")
    assert same(jsonckpt.load(path), {"w": torch.ones(9)})


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interpreter_that_starts_no_more_threads(
    tmp_path: Path, nursery: Nursery, threads: int
) -> None:
    """From Python 3.12 on that is so as soon as the main thread has ended."""
    path = str(tmp_path / "c")
    script = f"""
        state = {{"w": [torch.ones(500), torch.ones(500)]}}
        go, write = threading.Event(), api.write_checkpoint
        def late(*arguments):
            assert go.wait(30)
            return write(*arguments)
        def refuse(*_):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        api.write_checkpoint = late
        jsonckpt.save_async(state, {path!r}, threads={threads}, max_shard_size=1000)
        threading.Thread.start = refuse
        go.set()
    """
    assert nursery.run(script) == (0, "")
    assert same(jsonckpt.load(path), {"w": [torch.ones(500), torch.ones(500)]})


def test_an_error_that_nobody_saw_is_printed_at_exit(tmp_path: Path, nursery: Nursery) -> None:
    path = str(tmp_path / "c")
    script = f"""
        def full(*_):
            raise OSError(28, "No space left on device")
        os.pwritev = full
        jsonckpt.save_async({{"w": torch.ones(9)}}, {path!r})
    """
    code, errors = nursery.run(script)
    assert code == 0
    assert errors.count("jsonckpt: the background save to") == 1
    assert path in errors
    assert "No space left on device" in errors
    seen = textwrap.dedent(script).replace("jsonckpt.save_async", "p = jsonckpt.save_async")
    seen += "try:\n    p.result()\nexcept jsonckpt.WriteError:\n    pass\n"
    assert nursery.run(seen) == (0, "")


def test_a_forked_child_begins_anew(tmp_path: Path, nursery: Nursery) -> None:
    mine, theirs = str(tmp_path / "mine"), str(tmp_path / "theirs")
    script = f"""
        w = torch.arange(99999.0)
        jsonckpt.save_async({{"w": w}}, {mine!r}).result()
        finished = jsonckpt.save_async({{"w": w}}, {mine!r})
        finished.result()
        go = []
        hold_up(lambda: go)
        pending = jsonckpt.save_async({{"w": w + 1}}, {mine!r}, chunk_size=65536)
        child = os.fork()
        go.append(True)
        if child == 0:
            for ask in (pending.done, pending.result, pending.cancel):
                try:
                    ask()
                except jsonckpt.JsonckptError as error:
                    assert "forked" in str(error), error
                else:
                    raise AssertionError(ask)
            assert finished.done() and finished.result().tensors == 1
            assert threading.active_count() == 1
            # Its copy is its own, and the parent's is none of its business.
            assert len(api._buffers._plain._memory) == 0
            jsonckpt.save_async({{"w": w + 2}}, {theirs!r}, chunk_size=65536).result()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0, status
        pending.result()
        os._exit(0)
    """
    assert nursery.run(script) == (0, "")
    assert same(jsonckpt.load(mine), {"w": torch.arange(99999.0) + 1})
    assert same(jsonckpt.load(theirs), {"w": torch.arange(99999.0) + 2})


def test_the_error_of_a_parent_is_not_the_childs(tmp_path: Path, nursery: Nursery) -> None:
    script = f"""
        real = os.pwritev
        def full(*_):
            raise OSError(28, "No space left on device")
        os.pwritev = full
        pending = jsonckpt.save_async({{"w": torch.ones(9)}}, {str(tmp_path / "one")!r})
        while not pending.done():
            time.sleep(0.001)
        os.pwritev = real
        child = os.fork()
        if child == 0:
            jsonckpt.save_async({{"w": torch.ones(9)}}, {str(tmp_path / "two")!r})
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        try:
            jsonckpt.save_async({{"w": torch.ones(9)}}, {str(tmp_path / "three")!r})
        except jsonckpt.WriteError:
            pass
        else:
            raise AssertionError
        os._exit(0)
    """
    assert nursery.run(script) == (0, "")
    assert same(jsonckpt.load(tmp_path / "two"), {"w": torch.ones(9)})


def test_killed_at_any_moment(tmp_path: Path, nursery: Nursery) -> None:
    moments = random.Random(0)
    for name in ("c", "c.json"):
        path = tmp_path / name
        jsonckpt.save({"version": 0, "w": [torch.zeros(3000)] * 2}, path)
        begun = tmp_path / "begun"
        script = f"""
            version = jsonckpt.load({str(path)!r}, include=())["version"]
            first = version + 1
            while True:
                version += 1
                state = {{"version": version, "w": [torch.full((3000,), version * 1.0)] * 2}}
                state["w"][1] = state["w"][0].clone()
                pending = jsonckpt.save_async(
                    state, {str(path)!r}, chunk_size=4096, sync=version % 2 == 0
                )
                for w in state["w"]:
                    w.fill_(-1)
                if version == first:  # however slow the machine is, something has been saved
                    pending.result()
                    open({str(begun)!r}, "w").close()
        """
        latest = 0
        for _ in range(10):
            child = nursery.start(script)
            while not begun.exists():
                time.sleep(0.001)
            begun.unlink()
            time.sleep(moments.random() * 0.04)
            os.kill(child, signal.SIGKILL)
            assert nursery.finish() == -signal.SIGKILL
            state = jsonckpt.load(path)
            assert state["version"] > latest
            latest = state["version"]
            assert all(bool((w == latest).all()) for w in state["w"])
            assert jsonckpt.verify(path)
