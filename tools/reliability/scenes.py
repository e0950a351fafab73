"""The kinds of save that the tools try, and checks of the directory afterwards."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

import jsonckpt
from jsonckpt._src.format.filenames import SHARED_MARK
from jsonckpt._src.sources.safetensors_files import load_safetensors
from jsonckpt.convert import convert
from tests.support import difference
from tools.reliability import jobs

Outcome = Literal["old", "new", "none"]

#: The name of an earlier checkpoint, whose files a save may use again.
EARLIER = "b"
#: Whether this release has background saves.
ASYNC = hasattr(jsonckpt, "save_async")


def _state(version: int, tensors: int = 6) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(version)
    weights = {f"w{i}": torch.randn(40 + i, generator=generator) for i in range(tensors)}
    return {
        "version": version,
        "loss": version / 3,
        "model": {**weights, "tied": weights["w0"], "frozen": torch.arange(200.0)},
        "half": torch.full((33,), version, dtype=torch.bfloat16),
        "steps": torch.arange(version, version + 20),
    }


OLD, NEW = _state(1), _state(2)
SHARDS: dict[str, Any] = {"chunk_size": 64, "max_shard_size": 400}


@dataclass(frozen=True)
class Scene:
    """One kind of save.

    Attributes:
        target: the name of the checkpoint.
        how: the function that is called.
        overwrite: whether an old checkpoint exists.
        options: of the call. ``unchanged_from`` is the name of an earlier checkpoint beside it.
    """

    target: str
    how: Literal["save", "async", "convert", "ranks"] = "save"
    overwrite: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        kind = "overwrite" if self.overwrite else "new"
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.how} {self.target} {kind} {options}".rstrip()

    @property
    def before(self) -> Outcome:
        """What must exist until the new checkpoint does."""
        return "old" if self.overwrite else "none"

    @property
    def gives_up(self) -> bool:
        """Whether the old checkpoint is removed before the new one is written."""
        return bool(self.options.get("delete_first"))

    @property
    def allowed(self) -> frozenset[str]:
        """What may exist, whole, at any moment of the save."""
        return frozenset({self.before, "new", *(("none",) if self.gives_up else ())})

    def prepare(self, room: Path) -> None:
        """Prepare the directory: a source to convert, the old checkpoint."""
        room.mkdir(parents=True, exist_ok=True)
        if self.how == "convert":
            source = room.with_name(room.name + "-source")
            source.mkdir(exist_ok=True)
            if not (source / "new.pt").exists():
                torch.save(NEW, source / "new.pt")
                torch.save(OLD, source / "old.pt")
        if EARLIER in self.options.values():
            jsonckpt.save(_state(3), room / EARLIER, **SHARDS, threads=1)
        if self.overwrite:
            self._write(room, OLD)

    def run(self, room: Path, state: dict[str, Any] | None = None) -> None:
        """Save the new checkpoint."""
        self._write(room, NEW if state is None else state)

    def _write(self, room: Path, state: dict[str, Any]) -> None:
        path = room / self.target
        options = self.options
        if EARLIER in options.values():
            options = {**options, "unchanged_from": room / EARLIER}
        if self.how == "convert":
            source = room.with_name(room.name + "-source")
            name = "old.pt" if state is OLD else "new.pt"
            convert(source / name, path, spool=source, **{"overwrite": True, **self.options})
        elif self.how == "async":
            pending: Any = getattr(jsonckpt, "save_async")(state, path, **options)  # noqa: B009
            pending.result()
        elif self.how == "ranks":
            jobs.save_on_ranks(state, path, **options)
        else:
            jsonckpt.save(state, path, **options)

    def run_again(self, room: Path) -> None:
        """Save the new checkpoint over whatever exists."""
        options = {name: value for name, value in self.options.items() if name != "overwrite"}
        replace(self, options=options)._write(room, NEW)

    def path(self, room: Path) -> Path:
        """The path of the checkpoint."""
        return room / self.target


def _scenes() -> list[Scene]:
    one: dict[str, Any] = {"threads": 1}
    two: dict[str, Any] = {"threads": 2}
    zstd = {"encoding": "list", "compression": "zstd"}
    scenes = []
    for overwrite in (True, False):
        scenes += [
            Scene("c", "save", overwrite, {**SHARDS, **one}),
            Scene("c", "save", overwrite, {**SHARDS, **two}),
            Scene("c", "save", overwrite, {**SHARDS, **one, **zstd}),
            Scene("c", "save", overwrite, one),
            Scene("c.json", "save", overwrite, {"chunk_size": 64, **one}),
            Scene("c.json", "save", overwrite, {"chunk_size": 64, **two}),
            Scene("deep/er/c.json.zst", "save", overwrite, one),
            Scene("c", "convert", overwrite, {"max_shard_size": 400}),
            Scene("c.json", "convert", overwrite),
            Scene("c.pt", "convert", overwrite),
            Scene("c.safetensors", "convert", overwrite),
        ]
        if ASYNC:
            scenes += [
                Scene("c", "async", overwrite, {**SHARDS, **one}),
                Scene("c.json", "async", overwrite, one),
            ]
    # Files that two saves share: some shards of the old checkpoint are those of the new one.
    content: dict[str, Any] = {"save_id": "content", "chunk_size": 64, "max_shard_size": 8_000}
    for overwrite in (True, False):
        scenes += [
            Scene("c", "save", overwrite, {**content, **one}),
            Scene("c", "save", overwrite, {**content, **two}),
            Scene("c", "save", overwrite, {**content, **one, **zstd}),
            Scene("c.json", "save", overwrite, {**content, **one}),
            Scene("c", "convert", overwrite, {"save_id": "content", "max_shard_size": 8_000}),
        ]
        if ASYNC:
            scenes.append(Scene("c", "async", overwrite, {**content, **one}))
    # Files of an earlier checkpoint beside it, which must stay whole.
    earlier: dict[str, Any] = {**SHARDS, **one, "unchanged_from": EARLIER}
    for overwrite in (True, False):
        scenes += [
            Scene("c", "save", overwrite, earlier),
            Scene("c", "save", overwrite, {**earlier, **two}),
        ]
        if ASYNC:
            scenes.append(Scene("c", "async", overwrite, earlier))
    if jobs.WORKS:  # ranks that take turns, and die together
        ranks: dict[str, Any] = {"chunk_size": 64, "max_shard_size": 4_000}
        scenes += [
            Scene("c", "ranks", True, ranks),
            Scene("c", "ranks", False, ranks),
            Scene("c", "ranks", False, {**ranks, "overwrite": False}),
        ]
    # Nothing may be replaced, not even what appears during the save. This uses another commit.
    only: dict[str, Any] = {"overwrite": False}
    scenes += [
        Scene("c", "save", False, {**SHARDS, **one, **only}),
        Scene("c.json", "save", False, {"chunk_size": 64, **one, **only}),
        Scene("c.pt", "convert", False, only),
        Scene("c", "save", False, {**content, **one, **only}),
    ]
    # The old checkpoint may be lost, but it is never incomplete.
    gone: dict[str, Any] = {"delete_first": True, **one}
    scenes += [
        Scene("c", options={**SHARDS, **gone}),
        Scene("c.json", options={"chunk_size": 64, **gone}),
        Scene("c", options={**content, **gone}),
    ]
    if ASYNC:
        scenes.append(Scene("c", "async", options={**SHARDS, **gone}))
    return scenes


#: Every kind of save. The order does not matter.
SCENES = _scenes()


def outcome(scene: Scene, room: Path) -> Outcome:
    """Which whole checkpoint the directory has.

    Raises:
        Exception: none, or one that is neither old nor new.
    """
    path = scene.path(room)
    if EARLIER in scene.options.values():
        wrong = difference(jsonckpt.load(room / EARLIER), _state(3))
        assert wrong is None, f"the earlier checkpoint: {wrong}"
    if path.suffix == ".pt":
        return _which(path, lambda: torch.load(path, weights_only=True))
    if path.suffix == ".safetensors":
        return _which(path, lambda: _flat(load_safetensors(path).tensors), _flat)
    try:
        found = jsonckpt.load(path)
    except jsonckpt.CheckpointNotFoundError:
        return "none"
    except jsonckpt.IncompleteCheckpointError as error:
        # A first save that was interrupted: there are shards, but no manifest.
        if path.is_dir() and not (path / "manifest.json").exists():
            return "none"
        raise AssertionError(f"half a checkpoint: {error}") from error
    return _compared(found, lambda state: state)


def _which(
    path: Path, load: Callable[[], Any], view: Callable[[Any], Any] = lambda state: state
) -> Outcome:
    if not path.exists():
        return "none"
    return _compared(load(), view)


def _compared(found: Any, view: Callable[[Any], Any]) -> Outcome:
    if difference(found, view(NEW)) is None:
        return "new"
    wrong = difference(found, view(OLD))
    assert wrong is None, f"neither the old nor the new: {wrong}"
    return "old"


def _flat(state: Any) -> dict[str, Any]:
    """The tensors in the form of safetensors: flat."""
    if "model" not in state:
        return dict(sorted(state.items()))
    flat = {f"model.{name}": weight for name, weight in state["model"].items()}
    return dict(sorted({**flat, "half": state["half"], "steps": state["steps"]}.items()))


def files_of(path: Path) -> set[Path]:
    """A checkpoint, and the files that its manifest names."""
    if not (path / "manifest.json").exists():
        return {path}
    with jsonckpt.open(path) as checkpoint:
        shards = [shard.path for shard in checkpoint.manifest.shards]
    named = {path / name for name in shards}
    return {path, path / "manifest.json", *(path.parent / p.parent.name / p.name for p in named)}


def inside(room: Path) -> list[str]:
    """Every file and directory below, by its path."""
    return sorted(str(path.relative_to(room)) for path in room.rglob("*"))


_SHARD = r"shard-[0-9a-z-]{1,100}\.json(\.zst)?"
_TEMPORARY = r"\.manifest-[0-9a-f]{12}\.tmp|\.c\.[a-z.]+\.[0-9a-f]{12,16}\.tmp"


def unexpected(scene: Scene, room: Path, *, killed: bool) -> list[str]:
    """Files beside the checkpoint that should not exist.

    Args:
        killed: whether orphans under their known names are allowed.
    """
    path = scene.path(room)
    kept = {*files_of(path), *path.parents}
    if EARLIER in scene.options.values():
        kept |= {*files_of(room / EARLIER), room / EARLIER / SHARED_MARK}
    allowed = re.compile(f"{_SHARD}|{_TEMPORARY}")
    return [
        str(found.relative_to(room))
        for found in sorted(room.rglob("*"))
        if found not in kept and not (killed and allowed.fullmatch(found.name))
    ]


def clear(room: Path) -> None:
    """Empty a directory."""
    for name in os.listdir(room):
        path = room / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


Files = dict[str, bytes | None]


def snapshot(room: Path) -> Files:
    """The content of every file; of directories ``None``."""
    return {
        name: None if (room / name).is_dir() else (room / name).read_bytes()
        for name in inside(room)
    }


def prepared(prepare: Callable[[Path], object], room: Path) -> Files:
    """Let ``prepare`` fill an empty directory. Returns the content."""
    room.mkdir(exist_ok=True)
    clear(room)
    prepare(room)
    return snapshot(room)


def lay_out(room: Path, files: Files) -> None:
    """Make a directory hold exactly these files."""
    clear(room)
    for name in sorted(files):
        content = files[name]
        if content is None:
            (room / name).mkdir()
        else:
            (room / name).write_bytes(content)
