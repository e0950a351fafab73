"""The foreign group: time and memory of ``convert`` against the size of other programs' files."""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import torch

import jsonckpt
from benchmarks.arena import remove
from benchmarks.growth import exponent
from benchmarks.probe import Crew, Watched
from benchmarks.settings import Settings
from benchmarks.tables import Section, Table, bytes_text

__all__ = ["FORMS", "run"]

_Floats = npt.NDArray[np.float32]
#: Rows of a matrix; its columns are what the size asks for.
_COLUMNS = 512
_Writer = Callable[[Path, int], None]
FORMS: dict[str, _Writer] = {}


def form(label: str, part: int = 1) -> Callable[[_Writer], _Writer]:
    """Register a writer: it makes a file of about so many bytes at a path.

    Args:
        part: the file has only a part of the size. What becomes lists and dictionaries takes many
            times its text in any Python program, and is bounded by limits.
    """

    def add(writer: _Writer) -> _Writer:
        name = f"{label}, 1/{part} of it" if part > 1 else label
        FORMS[name] = lambda path, nbytes: writer(path, nbytes // part)
        return writer

    return add


def _matrices(nbytes: int) -> dict[str, _Floats]:
    """Eight matrices that have that many bytes together."""
    rng = np.random.default_rng(0)
    rows = max(1, nbytes // (8 * 4 * _COLUMNS))
    return {
        f"layers.{n}.weight": rng.normal(0, 0.02, (rows, _COLUMNS)).astype(np.float32)
        for n in range(8)
    }


def _dump(path: Path, document: object) -> None:
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def _listed(nbytes: int) -> dict[str, _Floats]:
    """Matrices whose lists of numbers have that many bytes."""
    return _matrices(nbytes * 4 // 13)


@form("{name: {data, shape, dtype}}")
def _data_shape_dtype(path: Path, nbytes: int) -> None:
    _dump(
        path,
        {
            name: {"data": array, "shape": list(array.shape), "dtype": "torch.float32"}
            for name, array in _listed(nbytes).items()
        },
    )


@form("state_dict of lists")
def _state_dict(path: Path, nbytes: int) -> None:
    _dump(path, {"state_dict": _listed(nbytes), "epoch": 3})


@form("list of layers")
def _layers(path: Path, nbytes: int) -> None:
    layers = [{"type": "dense", "weights": array} for array in _listed(nbytes).values()]
    _dump(path, {"layers": layers})


@form('typed arrays {"0": …}', part=4)
def _typed_arrays(path: Path, nbytes: int) -> None:
    arrays = _matrices(nbytes * 4 // 22)
    text = {
        name: {str(n): float(value) for n, value in enumerate(array.ravel())}
        for name, array in arrays.items()
    }
    path.write_text(json.dumps({"state_dict": text}))


@form("ragged lists, which stay lists", part=16)
def _ragged(path: Path, nbytes: int) -> None:
    rows = [[float(n % 7)] * (n % 50) for n in range(nbytes // 180)]
    _dump(path, {"w": {"data": [1.5], "dtype": "float32"}, "sentences": rows})


@form("base64")
def _base64(path: Path, nbytes: int) -> None:
    _dump(
        path,
        {
            name: {
                "__ndarray__": f"b64:{base64.b64encode(array.tobytes()).decode()}",
                "dtype": "float32",
                "shape": list(array.shape),
            }
            for name, array in _matrices(nbytes * 3 // 4).items()
        },
    )


@form("base64 of .npy")
def _base64_npy(path: Path, nbytes: int) -> None:
    document = {}
    for name, array in _matrices(nbytes * 3 // 4).items():
        file = io.BytesIO()
        np.save(file, array)
        document[name] = {"__ndarray__": True, "data": base64.b64encode(file.getvalue()).decode()}
    _dump(path, document)


@form("TensorFlow.js")
def _tensorflowjs(path: Path, nbytes: int) -> None:
    arrays = _matrices(nbytes)
    path.with_name("group1-shard1of1.bin").write_bytes(
        b"".join(array.tobytes() for array in arrays.values())
    )
    weights = [
        {"name": name, "shape": list(array.shape), "dtype": "float32"}
        for name, array in arrays.items()
    ]
    group = {"paths": ["group1-shard1of1.bin"], "weights": weights}
    _dump(path, {"format": "layers-model", "modelTopology": {}, "weightsManifest": [group]})


@form(".npz")
def _npz(path: Path, nbytes: int) -> None:
    with path.open("wb") as file:
        np.savez(file, *_matrices(nbytes).values())


@form("pickle, protocol 5")
def _pickle(path: Path, nbytes: int) -> None:
    path.write_bytes(pickle.dumps(_matrices(nbytes), protocol=5))


@form(".pt, protocol 5")
def _torch(path: Path, nbytes: int) -> None:
    state = {name: torch.from_numpy(array) for name, array in _matrices(nbytes).items()}
    torch.save(state, path, pickle_protocol=5)


@form("a jsonckpt file that a JSON tool wrote again")
def _written_again(path: Path, nbytes: int) -> None:
    state = {name: torch.from_numpy(array) for name, array in _matrices(nbytes * 3 // 4).items()}
    jsonckpt.save(state, path.with_name("own.json"))
    document = json.loads(path.with_name("own.json").read_bytes())
    path.with_name("own.json").unlink()
    document["seal"] = None
    path.write_text(json.dumps(document, indent=2))


def run(settings: Settings) -> Section:
    """Convert files of three sizes in each form."""
    mega = 1_000_000
    sizes = [mega, 4 * mega] if settings.quick else [8 * mega, 32 * mega, 128 * mega]
    section = Section(
        "foreign",
        "Files of other programs",
        "`convert --test-load` in a new process, against the size of the input. The exponent of "
        "the time is 1 where it grows in proportion.",
    )
    seconds, memory = [], []
    with Crew() as crew, _folder(settings.fast.path / "foreign") as folder:
        for label, write in FORMS.items():
            found = {size: _convert(crew, folder, write, size) for size in sizes}
            slope = exponent({size: watched.seconds for size, watched in found.items()})
            section.figures[f"foreign/{label}/exponent"] = slope
            most = max(section.figures.get("foreign/most", 0.0), slope)
            section.figures["foreign/most"] = most
            for size, watched in found.items():
                section.figures[f"foreign/{label}/{size}"] = watched.extra / (1 << 20)
            seconds.append(
                [label, *(f"{each.seconds:.2f}" for each in found.values()), f"{slope:.2f}"]
            )
            memory.append([label, *(f"{each.extra / (1 << 20):,.0f}" for each in found.values())])
    headings = ["", *map(bytes_text, sizes)]
    section.tables.append(Table("Seconds", [*headings, "exponent"], seconds))
    section.tables.append(Table("Anonymous memory in MiB", headings, memory))
    return section


def _convert(crew: Crew, folder: Path, write: Callable[[Path, int], None], size: int) -> Watched:
    source, output = folder / "input.json", folder / "output.json"
    write(source, size)
    try:
        return crew.watch("convert", path=source, output=output)
    finally:
        for file in folder.iterdir():
            remove(file)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)
