"""Lets programs in Python write the files of ``files/``, and says which tensors are in each.

Each function below writes one file with a program that is not this package. The values are those
that the program was given. ``write.mjs`` does the same for JavaScript::

    pip install -r tests/programs/requirements.txt
    npm install --no-package-lock --prefix tests/programs
    python -m tests.programs.write
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
FILES = HERE / "files"
W = np.array([[0.5, -1.25, 3.0], [1e-3, 0.1, -7.5]], np.float32)
B = np.array([0.25, -0.125], np.float32)
N = np.array([[1, 2], [3, -4]], np.int64)
Arrays = dict[str, np.ndarray[Any, Any]]
#: Of each file: who writes it, and the tensors in it by name.
WRITERS: dict[str, Callable[[Path], Arrays]] = {}


def writes(name: str) -> Callable[[Callable[[Path], Arrays]], Callable[[Path], Arrays]]:
    def add(writer: Callable[[Path], Arrays]) -> Callable[[Path], Arrays]:
        WRITERS[name] = writer
        return writer

    return add


def model() -> torch.nn.Module:
    """A small model with the parameters ``W`` and ``B`` and a batch norm."""
    made = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    made[0].weight.data = torch.from_numpy(W.copy())
    made[0].bias.data = torch.from_numpy(B.copy())
    return made


def named(state: dict[str, torch.Tensor], prefix: str = "") -> Arrays:
    return {f"{prefix}/{name}": value.detach().numpy() for name, value in state.items()}


@writes("tolist.json")
def tolist(path: Path) -> Arrays:
    state = model().state_dict()
    path.write_text(json.dumps({name: value.tolist() for name, value in state.items()}))
    return named(state)


@writes("tolist_with_settings.json")
def tolist_with_settings(path: Path) -> Arrays:
    state = model().state_dict()
    lists = {name: value.tolist() for name, value in state.items()}
    settings = {"hidden": [3, 2], "betas": [0.9, 0.999], "dropout": 0.1}
    history = {"loss": [0.9, 0.7, 0.65], "epoch": [1, 2, 3]}
    document = {"config": settings, "history": history, "epoch": 3, "model_state_dict": lists}
    path.write_text(json.dumps(document, indent=2))
    return named(state, "/model_state_dict")


@writes("json_tricks.json")
def json_tricks(path: Path) -> Arrays:
    import json_tricks as program

    path.write_text(program.dumps({"w": W, "b": B, "n": N}))
    return {"/w": W, "/b": B, "/n": N}


@writes("json_tricks_compact.json")
def json_tricks_compact(path: Path) -> Arrays:
    import json_tricks as program

    path.write_text(program.dumps({"w": W, "n": N}, properties={"ndarray_compact": True}))
    return {"/w": W, "/n": N}


@writes("json_numpy.json")
def json_numpy(path: Path) -> Arrays:
    import json_numpy as program

    path.write_text(program.dumps({"w": W, "n": N}))
    return {"/w": W, "/n": N}


@writes("jsonpickle.json")
def jsonpickle(path: Path) -> Arrays:
    import jsonpickle as program
    import jsonpickle.ext.numpy as extension

    arrays: Arrays = {"w": W, "n": N, "again": W, "z": W[:, 0] + 1j}
    extension.register_handlers()
    try:
        path.write_text(program.encode(arrays, keys=True))
    finally:
        extension.unregister_handlers()
    return {f"/{name}": array for name, array in arrays.items()}


@writes("monty.json")
def monty(path: Path) -> Arrays:
    from monty.json import MontyEncoder

    path.write_text(json.dumps({"w": W, "b": torch.from_numpy(B), "n": N}, cls=MontyEncoder))
    return {"/w": W, "/b": B, "/n": N}


@writes("bokeh.json")
def bokeh(path: Path) -> Arrays:
    from bokeh.core.serialization import Serializer

    small = N.astype(np.int32)
    content = Serializer(deferred=False).serialize({"w": W, "n": small}).content
    path.write_text(json.dumps(content))
    return {"/entries/0/1": W, "/entries/1/1": small}


@writes("plotly.json")
def plotly(path: Path) -> Arrays:
    import plotly.graph_objects as graphs

    figure = graphs.Figure(graphs.Heatmap(z=W), layout={"template": "none"})
    path.write_text(figure.to_json(engine="json"))
    return {"/data/0/z": W}


@writes("arrays.npz")
def npz(path: Path) -> Arrays:
    np.savez(path, w=W, n=N, column_major=np.asfortranarray(W))
    return {"/w": W, "/n": N, "/column_major": W}


@writes("compressed.npz")
def compressed_npz(path: Path) -> Arrays:
    np.savez_compressed(path, w=W, b=B)
    return {"/w": W, "/b": B}


@writes("array.npy")
def npy(path: Path) -> Arrays:
    np.save(path, W)
    return {"": W}


@writes("torch_protocol_5.pt")
def torch_protocol_5(path: Path) -> Arrays:
    state = model().state_dict()
    torch.save({"model": state, "seed": np.int64(7)}, path, pickle_protocol=5)
    return named(state, "/model")


@writes("torch_legacy.pt")
def torch_legacy(path: Path) -> Arrays:
    state = model().state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return named(state)


@writes("pickled.pkl")
def pickled(path: Path) -> Arrays:
    path.write_bytes(pickle.dumps({"w": W, "t": torch.from_numpy(B)}, protocol=4))
    return {"/w": W, "/t": B}


@writes("model.safetensors")
def safetensors(path: Path) -> Arrays:
    from safetensors.torch import save_file

    state = model().state_dict()
    save_file(state, path, metadata={"format": "pt", "note": "made by safetensors"})
    return named(state)


def describe(arrays: Arrays) -> dict[str, Any]:
    """Arrays as plain JSON, so that a reader needs nothing of the program."""
    return {
        name: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "data": array.view(np.float32).ravel().tolist()
            if array.dtype.kind == "c"
            else array.ravel().tolist(),
        }
        for name, array in arrays.items()
    }


def write_python(folder: Path) -> None:
    """Write all files of programs in Python into a directory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, writer in WRITERS.items():
        expected = describe(writer(folder / name))
        (folder / f"{name}.expected").write_text(json.dumps(expected) + "\n")


def write_javascript(folder: Path) -> None:
    """Write all files of programs in JavaScript into a directory."""
    node = shutil.which("node")
    assert node is not None
    subprocess.run([node, HERE / "write.mjs", folder], check=True, cwd=HERE, timeout=120)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILES
    write_python(target)
    write_javascript(target)
