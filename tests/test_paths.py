"""One rule for each path, whatever function or command gets it."""

from __future__ import annotations

import errno
import io
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import training
from jsonckpt._src.cli.main import main
from jsonckpt._src.storage.path_arguments import check_target_name
from jsonckpt.convert import convert

STATE = {"w": torch.ones(3), "epoch": 1}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    jsonckpt.save(STATE, tmp_path / "ok", sync=False)
    jsonckpt.save(STATE, tmp_path / "ok.json", sync=False)
    torch.save(STATE, tmp_path / "x.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield tmp_path
    jsonckpt.load(tmp_path / "ok")  # nothing of this may change it


#: Calls that write what they are given.
WRITERS: dict[str, Callable[[Any], object]] = {
    "save": lambda p: jsonckpt.save(STATE, p),
    "save_async": lambda p: jsonckpt.save_async(STATE, p).result(),
    "recover to": lambda p: jsonckpt.recover("ok", p),
    "convert to json": lambda p: convert("x.pt", p, to="json"),
    "convert to dir": lambda p: convert("x.pt", p, to="dir"),
}
READERS: dict[str, Callable[[Any], object]] = {
    "load": jsonckpt.load,
    "stream": lambda p: list(jsonckpt.stream(p)),
    "open": jsonckpt.open,
    "verify": jsonckpt.verify,
    "load_into": lambda p: jsonckpt.load_into({"w": torch.zeros(3), "epoch": 0}, p),
    "recover": lambda p: jsonckpt.recover(p, "new"),
    "gc": jsonckpt.gc,
    "convert": lambda p: convert(p, "new.json"),
    "convert spool": lambda p: convert("x.pt", "new.json", spool=p),
    "checkpoints": training.checkpoints,
    "latest": training.latest,
}
COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "show": lambda p: ["show", p],
    "verify": lambda p: ["verify", p],
    "recover": lambda p: ["recover", p, "new"],
    "recover to": lambda p: ["recover", "ok", p],
    "gc": lambda p: ["gc", p, "--older-than", "1h"],
    "convert": lambda p: ["convert", p, "-o", "new.json"],
    "convert to": lambda p: ["convert", "x.pt", "-o", p],
    "convert spool": lambda p: ["convert", "x.pt", "-o", "new.json", "--spool", p],
    "convert shapes": lambda p: ["convert", "x.pt", "-o", "new.json", "--shapes", p],
}
#: Paths that are most likely a mistake -> what is said.
MISTAKES = {
    "": "an empty string",
    " ": "white space",
    "run ": "white space",
    "run.json\n": "white space",
    "\trun": "white space",
    "~": "only a shell expands",
    "~/run": "only a shell expands",
    "~/run.json": "only a shell expands",
    "~nobody/run": "only a shell expands",
    "-": "no name for a pipe",
    "s3://bucket/run\n": "white space",
    "s3://": "lacks a part",
    "://run": "lacks a part",
    "file://~/run": "only a shell expands",
}


def names_in(room: Path) -> set[str]:
    return {str(path.relative_to(room)) for path in room.rglob("*")}


@pytest.mark.parametrize("call", [*WRITERS, *READERS])
def test_a_name_that_is_a_mistake(room: Path, call: str) -> None:
    before = names_in(room)
    for path, said in MISTAKES.items():
        with pytest.raises(jsonckpt.ArgumentError, match=said) as caught:
            (WRITERS | READERS)[call](path)
        assert caught.value.hint
        assert names_in(room) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_for_commands(
    room: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = names_in(room)
    for path, said in MISTAKES.items():
        if path == "-" and command in ("show", "verify"):
            continue  # they read standard input
        assert main(COMMANDS[command](path)) == 2
        printed = capsys.readouterr()
        local = "://" in path and command in ("convert spool", "convert shapes")
        assert ("local path" if local else said) in printed.err
        assert names_in(room) == before


@pytest.mark.parametrize("path", ["run ", "~", "~old.json", " a.json", "-"])
def test_a_name_that_is_there_is_no_mistake(room: Path, path: str) -> None:
    (room / path).touch() if path.endswith(".json") else (room / path).mkdir()
    jsonckpt.save(STATE, path)
    assert jsonckpt.load(path)["epoch"] == 1
    assert jsonckpt.save(STATE, room / "new" / path.strip()).path.endswith(path.strip())


def test_the_working_directory(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (room / "here").mkdir()
    monkeypatch.chdir(room / "here")
    for path in (".", Path("")):
        assert jsonckpt.save(STATE, path).path == "."
        assert jsonckpt.load(path)["epoch"] == 1


@pytest.mark.parametrize("reader", ["load", "open", "verify", "recover", "gc", "convert"])
@pytest.mark.parametrize("path", ["$HOME/run", "${HOME}/run.json"])
@pytest.mark.usefixtures("room")
def test_variables_are_not_expanded(reader: str, path: str) -> None:
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="is not expanded here"):
        READERS[reader](path)


OTHER_KINDS = [
    *("a.pt", "a.pth", "a.ckpt", "a.bin", "a.PT", "a.safetensors", "a.pkl", "a.npz", "a.npy"),
    *("a.onnx", "a.h5", "a.gguf", "a.zip", "a.tar", "a.tar.gz", "a.gz", "a.zst", ".zst", "a.txt"),
    *("a.csv", "a.yaml", "a.yml", "a.JSON", "a.Json.zst", "a.json.ZST", "a.json.gz", "a.jsonl"),
    *("a.json5", "a.json.tmp", "a.json~", "a.json.1", "a.geojson", "a.json/", "a.pt/"),
]
DIRECTORIES = ["run-1.5", "model.v2", "step.1000", "a.b.c", "run", ".hidden", "jsonl", "a.json-old"]


@pytest.mark.parametrize("writer", WRITERS)
def test_names_of_other_kinds(room: Path, writer: str) -> None:
    before = names_in(room)
    convertible = writer.startswith("convert")
    for name in OTHER_KINDS:
        if convertible and name.endswith("/"):
            continue  # a Path has no slash at its end
        with pytest.raises(jsonckpt.ArgumentError) as caught:
            WRITERS[writer](name)
        assert convertible or "End the name in .json or .json.zst" in str(caught.value)
        assert names_in(room) == before


def test_a_conversion_by_the_name(room: Path) -> None:
    for name in OTHER_KINDS:
        if name.endswith("/"):
            continue
        if name.lower().endswith((".pt", ".pth", ".ckpt", ".bin", ".safetensors")):
            convert("x.pt", name)
            assert (room / name).is_file()
            continue
        with pytest.raises(jsonckpt.ArgumentError, match="End the name in"):
            convert("x.pt", name)
        assert main(["convert", "x.pt", "-o", name]) == 2
        assert not (room / name).exists()


@pytest.mark.parametrize("name", DIRECTORIES)
@pytest.mark.usefixtures("room")
def test_names_of_directories(name: str) -> None:
    for writer in ("save", "save_async", "convert to dir"):
        WRITERS[writer](f"{writer}/{name}")
        assert jsonckpt.load(f"{writer}/{name}")["epoch"] == 1
    check_target_name(f"{name}/")


@pytest.mark.parametrize("name", ["a.pt", "a.json.gz"])
def test_a_directory_that_is_there_is_meant(room: Path, name: str) -> None:
    (room / name).mkdir()
    for epoch in (1, 2):
        jsonckpt.save({"epoch": epoch}, name)
        jsonckpt.save_async({"epoch": epoch}, name).result()
        assert jsonckpt.load(name)["epoch"] == epoch


@pytest.mark.parametrize("name", ["a.pt", "a.JSON", "a.json.gz", "a.zip"])
def test_names_behind_urls(name: str) -> None:
    pytest.importorskip("fsspec")
    import fsspec

    url = f"memory://paths/{name}"
    for save in (jsonckpt.save, lambda s, p: jsonckpt.save_async(s, p).result()):
        with pytest.raises(jsonckpt.ArgumentError, match="End the name in"):
            save(STATE, url)
    memory = fsspec.filesystem("memory")
    assert not memory.exists(f"/paths/{name}")
    jsonckpt.save(STATE, "memory://paths/there")
    memory.mv("/paths/there", f"/paths/{name}", recursive=True)
    assert jsonckpt.save(STATE, url).path == url  # a checkpoint that is there may be replaced
    memory.rm("/paths", recursive=True)


TARGETS = ["d", "c.json", "c.json.zst", "c.pt", "c.safetensors", "legacy.json"]


def _made(path: Path, **options: Any) -> None:
    to = "legacy-json" if path.name == "legacy.json" else None
    convert("x.pt", path, to=to, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TARGETS)
def test_missing_directories_are_made(
    room: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    synced = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr("os.fsync", fsync)
    _made(room / "p" / "q" / name)
    assert (room / "p" / "q" / name).exists()
    assert {str(room), str(room / "p"), str(room / "p" / "q")} <= set(synced)
    if name in ("d", "c.json", "c.json.zst"):
        jsonckpt.save(STATE, room / "r" / "s" / name)
        jsonckpt.save_async(STATE, room / "t" / "s" / name).result()
        jsonckpt.recover("ok.json", room / "u" / "s" / name)


@pytest.mark.parametrize("name", TARGETS)
def test_what_fails_leaves_no_directory(
    room: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.pwritev", refuse)
    with pytest.raises(jsonckpt.WriteError):
        _made(room / "p" / "q" / name)
    assert not (room / "p").exists()


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_is_no_directory(room: Path, name: str) -> None:
    with pytest.raises(jsonckpt.WriteError, match="A part of the path is a file") as caught:
        _made(room / "ok.json" / name)
    assert ".tmp" not in str(caught.value)
    assert jsonckpt.verify("ok.json")


def _identity(path: Path) -> tuple[int, ...]:
    """What a replacement changes; a look at it changes only the time of access."""
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["FIFO", "socket", "character device", "directory"])
def test_only_files_are_replaced(room: Path, name: str, kind: str) -> None:
    path = room / f"special{Path(name).suffix}"
    if name == "c.json.zst":
        path = room / "special.json.zst"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif kind == "character device":
        path.symlink_to("/dev/null")
    else:
        path.mkdir()
        (path / "mine").touch()
    before = _identity(path)
    writers: list[Callable[[], object]] = [lambda: convert("x.pt", path, overwrite=True)]
    if name == "legacy.json":
        writers = [lambda: convert("x.pt", path, to="legacy-json", overwrite=True)]
    if name in ("d", "c.json", "c.json.zst"):
        writers += [lambda: jsonckpt.save(STATE, path), lambda: WRITERS["save_async"](path)]
        writers += [lambda: jsonckpt.recover("ok", path)]
    for write in writers:
        with pytest.raises(jsonckpt.CheckpointExistsError) as caught:
            write()
        assert caught.value.hint
        assert _identity(path) == before


@pytest.mark.parametrize("reader", [r for r in READERS if r not in ("checkpoints", "latest", "gc")])
def test_a_pipe_is_not_opened_by_its_name(room: Path, reader: str) -> None:
    os.mkfifo(room / "pipe")
    if reader == "verify":
        (problem,) = jsonckpt.verify("pipe").problems
        assert "a FIFO, not a regular file" in str(problem)
        assert main(["verify", "pipe"]) == 1
        return
    with pytest.raises(jsonckpt.JsonckptError) as caught:
        READERS[reader](room / "pipe")
    assert caught.value.hint


@pytest.mark.parametrize("name", TARGETS)
def test_modes_are_kept(room: Path, name: str) -> None:
    path = room / name
    _made(path)
    file = next(path.glob("manifest.json")) if path.is_dir() else path
    for mode in (0o640, 0o600):
        file.chmod(mode)
        _made(path, overwrite=True)
        assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize("path", ["d", "./d", "a/../d", "c.json", "./c.json", "link.json", "d/"])
def test_the_result_has_the_path_as_it_was_given(room: Path, path: str) -> None:
    (room / "a").mkdir()
    (room / "link.json").symlink_to("real.json")
    for given in (path, Path(path), room / path):
        assert jsonckpt.save(STATE, given).path == os.fspath(given)
        assert jsonckpt.save_async(STATE, given).result().path == os.fspath(given)
    assert jsonckpt.recover("./ok", "./new.json").path == "./ok"
    assert jsonckpt.recover("ok", "./other.json").out == "./other.json"
    assert jsonckpt.verify("./ok").path == "./ok"
    assert jsonckpt.gc("./ok").path == "./ok"


class _Text(str):
    pass


def _entry(room: Path, name: str) -> Any:
    with os.scandir(room) as entries:
        return next(entry for entry in entries if entry.name == name)


class _Convenient:
    """A path with methods to read and write, like ``py.path.local``."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __fspath__(self) -> str:
        return self._path

    def read(self) -> str:
        raise AssertionError

    def write(self, data: object) -> None:
        raise AssertionError(data)


@pytest.mark.parametrize("reader", [r for r in READERS if r not in ("convert spool",)])
def test_whatever_is_a_path(room: Path, reader: str) -> None:
    for path in (_Text("ok"), PurePath("ok"), _entry(room, "ok"), _Convenient(room / "ok")):
        READERS[reader](path)
        for left in ("new", "new.json"):
            if (room / left).is_dir():
                for file in (room / left).iterdir():
                    file.unlink()
                (room / left).rmdir()
            (room / left).unlink(missing_ok=True)
    jsonckpt.save(STATE, _Convenient(room / "other"))
    assert jsonckpt.load(room / "other")["epoch"] == 1


class _Cloud:
    """A path that universal_pathlib makes for a URL."""

    protocol = "s3"

    def __str__(self) -> str:
        return "s3://bucket/run"

    def open(self) -> None: ...


@pytest.mark.parametrize("call", [*WRITERS, *READERS])
def test_what_is_nearly_a_path(room: Path, call: str) -> None:
    with zipfile.ZipFile(room / "z.zip", "w") as archive:
        archive.writestr("a.json", "{}")
    with tempfile.TemporaryDirectory() as name:
        directory = tempfile.TemporaryDirectory()
        nearly: list[tuple[object, str]] = [
            (zipfile.Path(room / "z.zip", "a.json"), "Open it for bytes"),
            (_Cloud(), r"Pass str\(path\)"),
            (directory, r"Pass its \.name"),
            (b"run", r"os\.fsdecode|BytesIO"),
            (bytearray(b"run"), "bytearray"),
            (os.environb, "Environ"),
            (io.BytesIO, "type"),
            (torch.nn.Linear(1, 1), "Linear"),
            (torch.ones(2), "Tensor"),
        ]
        for value, said in nearly:
            with pytest.raises(jsonckpt.ArgumentError, match=said) as caught:
                (WRITERS | READERS)[call](value)
            assert any(
                word in str(caught.value) for word in ("path", "out", "source", "spool", "dir")
            )
        directory.cleanup()
        assert not os.listdir(name)


@pytest.mark.parametrize(
    "call", [c for c in (*WRITERS, *READERS) if c not in ("save", "load", "stream", "verify")]
)
def test_file_objects_where_paths_are_meant(room: Path, call: str) -> None:
    with (room / "ok.json").open("rb") as binary, (room / "ok.json").open() as text:
        for file in (binary, text, io.BytesIO(), io.StringIO(), sys.stdout, sys.stdin):
            with pytest.raises(jsonckpt.ArgumentError, match="file object"):
                (WRITERS | READERS)[call](file)


def test_file_objects_in_the_wrong_state(room: Path) -> None:
    path = room / "ok.json"
    with path.open("rb") as reading, (room / "w").open("wb") as writing, path.open("ab") as adding:
        with pytest.raises(jsonckpt.ArgumentError, match=r'for reading only.*"wb"'):
            jsonckpt.save(STATE, reading)
        with pytest.raises(jsonckpt.ArgumentError, match=r'for writing only.*"rb"'):
            jsonckpt.load(writing)
        with pytest.raises(jsonckpt.ArgumentError, match=r'for writing only.*"rb"'):
            list(jsonckpt.stream(writing))
        with pytest.raises(jsonckpt.ArgumentError, match=r"appends, and its file has \d+ bytes"):
            jsonckpt.save(STATE, adding)
    with (room / "new.json").open("ab") as adding:  # there is nothing yet
        jsonckpt.save(STATE, adding)
    assert jsonckpt.load("new.json")["epoch"] == 1


class _Broken(io.RawIOBase):
    """A raw stream that does not say whether it is readable."""

    def readinto(self, buffer: Any, /) -> int:
        del buffer
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    def write(self, data: Any, /) -> int:
        del data
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_file_objects_that_fail() -> None:
    for read in (jsonckpt.load, lambda file: list(jsonckpt.stream(file))):
        with pytest.raises(jsonckpt.JsonckptError, match="Connection reset by peer") as caught:
            read(_Broken())
        assert isinstance(caught.value.__cause__, ConnectionResetError)
    with pytest.raises(jsonckpt.WriteError, match="Connection reset by peer"):
        jsonckpt.save(STATE, _Broken())


@pytest.mark.usefixtures("room")
def test_swapped() -> None:
    save: Any = jsonckpt.save
    for state in ("new", Path("new"), io.BytesIO()):
        with pytest.raises(jsonckpt.ArgumentError, match="swapped"):
            save(state, STATE)
        with pytest.raises(jsonckpt.ArgumentError, match="swapped"):
            jsonckpt.save_async(state, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    for target in ("ok", Path("ok")):
        with pytest.raises(jsonckpt.ArgumentError, match=r"load_into\(target, path\)"):
            jsonckpt.load_into(target, torch.nn.Linear(1, 1))  # type: ignore[arg-type]


@pytest.mark.usefixtures("room")
def test_sizes_that_are_not_kept() -> None:
    state = {"large": torch.ones(1000), "small": torch.ones(2)}
    assert jsonckpt.save(state, "a").notes == ()
    for result in (
        jsonckpt.save(state, "a", max_shard_size=1000),
        jsonckpt.save_async(state, "a", max_shard_size=1000).result(),
    ):
        (note,) = result.notes
        assert "one file is larger than max_shard_size=1000" in note
        assert "tensor '/large'" in note
    for target in ("a.json", "a.json.zst", io.BytesIO()):
        (note,) = jsonckpt.save(state, target, max_shard_size=1000).notes
        assert "has no effect: this is one file" in note
    torch.save(state, "s.pt")
    assert any("is larger than" in n for n in convert("s.pt", "b", max_shard_size=1000).notes)
    assert main(["convert", "s.pt", "-o", "b.json", "--max-shard-size", "1000"]) == 2


def test_near_names(room: Path) -> None:
    for number in range(20):
        jsonckpt.save(STATE, room / "run" / f"checkpoint_step{number:04}0.json", sync=False)
    with pytest.raises(jsonckpt.CheckpointNotFoundError) as caught:
        jsonckpt.load("run/checkpoint_step00150")
    assert "directory has checkpoint_step00150.json, " in str(caught.value)
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match=r"no directory rnu; \. has run"):
        jsonckpt.load("rnu/checkpoint_step00150.json")
    os.utime(room / "run" / "checkpoint_step00030.json", (2e9, 2e9))
    for reader in ("load", "open", "verify", "gc"):
        with pytest.raises(jsonckpt.CheckpointNotFoundError) as caught:
            READERS[reader]("run")
        assert "the newest first: checkpoint_step00030.json, " in str(caught.value)
        assert "and 17 more" in str(caught.value)


@pytest.mark.usefixtures("room")
def test_names_of_tensors() -> None:
    jsonckpt.save({"model": {"0.weight": torch.ones(1), "0.bias": torch.ones(1)}}, "m")
    checkpoint: Any = jsonckpt.open("m")
    for name, said in {
        "/model/0.weigth": "Did you mean '/model/0.weight'",
        "model/0.weight": "'/model/0.weight'? A name begins with a slash",
        "/model/0.weight/": "Did you mean '/model/0.weight'?",
        "/model": ".at('/model') lists them, .load(include='/model') reads them",
        "model": ".load(include='/model') reads them",
        5: "a str such as '/w', not 'int'",
    }.items():
        with pytest.raises(KeyError) as caught:
            checkpoint[name]
        assert isinstance(caught.value, jsonckpt.ArgumentError)
        assert "m: " in str(caught.value)
        assert said in str(caught.value)
        assert name not in checkpoint
        assert checkpoint.get(name) is None
        assert checkpoint.get(name, 7) == 7
    assert checkpoint.get("/model/0.bias").nbytes == 4
    with pytest.raises(KeyError, match="There are no tensors"):
        jsonckpt.save({}, "none") and jsonckpt.open("none")["/w"]


LIMITED = """
import resource, signal, sys, torch, jsonckpt
from jsonckpt.convert import convert
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
state = {"w": torch.ones(100_000), "v": torch.ones(100_000)}
try:
    if sys.argv[1].endswith((".pt", ".safetensors")):
        convert("in.pt", sys.argv[1])
    else:
        jsonckpt.save(state, sys.argv[1])
except jsonckpt.WriteError as error:
    print(error.errno, error)
"""


@pytest.mark.parametrize("limit", [100_000, 700_000])
@pytest.mark.parametrize("name", ["c", "c.json", "c.pt", "c.safetensors"])
def test_a_limit_on_each_file(room: Path, name: str, limit: int) -> None:
    torch.save({"w": torch.ones(100_000), "v": torch.ones(100_000)}, room / "in.pt")
    command = [sys.executable, "-c", LIMITED, name, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{errno.EFBIG} "), (done.stdout, done.stderr)
    assert "more room" not in done.stdout
    if name in ("c", "c.json") and limit == 100_000:
        assert "a smaller max_shard_size cannot help" in done.stdout
    else:
        assert "a limit on the size of each file" in done.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


OPTIONS: dict[str, Callable[[], object]] = {
    "options": lambda: convert("x.pt", "y.json", "pt"),  # type: ignore[arg-type]
    "to must": lambda: convert("x.pt", "y.json", to=[]),  # type: ignore[arg-type]
    "include must": lambda: convert("x.pt", "y.json", include=5),  # type: ignore[arg-type]
    "exclude must": lambda: convert("x.pt", "y.json", exclude=[5]),  # type: ignore[list-item]
    "tie must": lambda: convert("x.pt", "y.json", tie="a=b"),  # type: ignore[arg-type]
    "shapes must": lambda: convert("x.pt", "y.json", shapes="x.json"),  # type: ignore[arg-type]
    "progress must": lambda: convert("x.pt", "y.json", progress=True),  # type: ignore[arg-type]
    "dtype must": lambda: convert("x.pt", "y.json", dtype=torch.float16),  # type: ignore[arg-type]
    "which is a file": lambda: training.latest("ok.json"),
    "pattern is": lambda: training.checkpoints(".", "**x"),
    "found 'dict' and 'SGD'": lambda: training.restore_optimizer({}, _sgd()),  # type: ignore
    "found 'SGD' and 'NoneType'": lambda: training.restore_optimizer(_sgd(), None),  # type: ignore
    "a web server takes no files": lambda: jsonckpt.save(STATE, "https://localhost/run"),
}


def _sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])


@pytest.mark.parametrize("said", OPTIONS)
def test_other_arguments(room: Path, said: str) -> None:
    before = names_in(room)
    with pytest.raises(jsonckpt.ArgumentError, match=said):
        OPTIONS[said]()
    assert names_in(room) == before


@pytest.mark.usefixtures("room")
def test_a_name_alone_selects() -> None:
    assert [name for name, _, _ in convert("x.pt", "y.json", include="/w").tensors] == ["/w"]
    with pytest.raises(jsonckpt.StateMismatchError, match="SeededOrder"):
        training.SeededOrder(5).load_state_dict(None)  # type: ignore[arg-type]
    assert "max_shard_size has no effect on pt" in convert("ok", "z.pt", max_shard_size=9).notes
