"""A signal handler that saves or loads, while its own thread saves or loads; and no memory left."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src import parallel
from jsonckpt._src.errors import WriteError
from jsonckpt._src.save.outputs import FileOutput
from tests.support import slow

HANDLER = """
    import faulthandler, random, signal, sys, time
    import torch, jsonckpt
    faulthandler.dump_traceback_later(90, exit=True)
    torch.set_num_threads(1)
    room, seed = sys.argv[1], int(sys.argv[2])
    dice, state = random.Random(seed), {f"w{i}": torch.full((500 + i,), 1.0) for i in range(12)}
    state["half"] = torch.ones(99, dtype=torch.bfloat16)
    zstd = {"encoding": "list", "compression": "zstd", "sync": False}
    small = {"max_shard_size": 9000, "threads": 2, "sync": False}
    into = {name: w.clone() for name, w in state.items()}
    jsonckpt.save(state, room + "/d", **small)

    def asynchronous():
        try:
            pending = jsonckpt.save_async(state, room + "/d", **small)
            if dice.random() < 0.5:
                pending.result()
        except jsonckpt.JsonckptError as error:
            if "preparing another save" not in str(error):
                raise

    acts = {
        "directory": lambda: jsonckpt.save(state, room + "/d", **small),
        "file": lambda: jsonckpt.save(state, room + "/f.json", sync=False),
        "lists": lambda: jsonckpt.save(state, room + "/l", **zstd),
        "save_async": asynchronous,
        "load": lambda: jsonckpt.load(room + "/d"),
        "load_into": lambda: jsonckpt.load_into(into, room + "/d"),
        "verify": lambda: jsonckpt.verify(room + "/d"),
    }
    ran = 0

    def handler(*_):
        global ran
        ran += 1
        try:
            dice.choice(list(acts.values()))()
        except jsonckpt.JsonckptError as error:
            # A reader in the frame of a writer may find what the writer has replaced.
            if not isinstance(error, jsonckpt.IncompleteCheckpointError):
                raise
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0003, 0.006))

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    until = time.monotonic() + 60
    while ran < 150 and time.monotonic() < until:
        for act in acts.values():
            try:
                act()
            except jsonckpt.IncompleteCheckpointError:
                pass  # saved over three times while it was read
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    for name in ("d", "f.json", "l"):
        assert jsonckpt.load(f"{room}/{name}")["w3"].unique().tolist() == [1.0], name
    print(ran)
"""


def _child(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="timers of POSIX")
def test_a_handler_that_saves_while_its_thread_saves(tmp_path: Path) -> None:
    ended = _child(HANDLER, tmp_path, 1)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout) >= 20


LIMITED = """
    import faulthandler, resource, sys, threading, time
    import torch, jsonckpt
    room, half = sys.argv[1], int(sys.argv[2])
    faulthandler.dump_traceback_later(60, exit=True)
    torch.set_num_threads(1)
    jsonckpt.save({"x": torch.ones(400_000), "y": torch.ones(400_000)}, room + "/warm", threads=2)
    # Stacks that are kept: so a thread can be started, and then has no memory.
    threads = [threading.Thread(target=time.sleep, args=(0.05,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    new = {f"w{i}": torch.full((2 << 20,), 2.0) for i in range(4)}
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + (half << 19), -1))
    try:
        what = sys.argv[3]
        if what == "save":
            jsonckpt.save(new, room + "/c", threads=2, max_shard_size="20MB", sync=False)
        elif what == "save_async":
            jsonckpt.save_async(new, room + "/c", threads=2, sync=False).result()
        elif what == "recover":
            jsonckpt.recover(room + "/c", room + f"/r{half}", threads=2, sync=False)
        else:
            jsonckpt.load(room + "/c", threads=2)
        print("done")
    except (MemoryError, jsonckpt.JsonckptError) as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
@pytest.mark.parametrize("half", [slow(4), 9, slow(16)])
@pytest.mark.parametrize("what", ["save", slow("save_async"), slow("recover"), "load"])
def test_hardly_any_memory_left(tmp_path: Path, what: str, half: int) -> None:
    old = {f"w{i}": torch.full((2 << 20,), 1.0) for i in range(4)}
    jsonckpt.save(old, tmp_path / "c", sync=False)
    ended = _child(LIMITED, tmp_path, half, what)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.split()[-1] in ("done", "MemoryError", "LimitError", "WriteError")
    value = 2.0 if what.startswith("save") and "done" in ended.stdout else 1.0
    assert jsonckpt.load(tmp_path / "c")["w3"].unique().tolist() == [value]


@pytest.mark.parametrize("kind", ["refused", "dies"])
def test_threads_that_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def start(_: object) -> None:
        if kind == "refused":
            raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(parallel, "_PATIENCE", 0.01)
    state = {"a": torch.ones(100_000), "b": torch.zeros(100_000)}
    jsonckpt.save(state, tmp_path / "c", threads=3, max_shard_size=500_000)
    assert jsonckpt.load(tmp_path / "c", threads=3)["a"].sum().item() == 100_000
    assert jsonckpt.save_async(state, tmp_path / "d", threads=3).result().tensors == 2


def test_a_commit_needs_every_byte() -> None:
    class Nowhere:
        def write_at(self, offset: int, buffers: object) -> None:
            pass

        def finish(self, *, sync: bool) -> None:
            pass

    output = FileOutput(Nowhere(), sync=False)
    output.put(0, [b"12345"])
    with pytest.raises(WriteError, match=r"5 of 9 bytes .* a thread has ended early"):
        output.end(9)
