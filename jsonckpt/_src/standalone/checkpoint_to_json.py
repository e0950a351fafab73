"""Converts a PyTorch checkpoint to JSON, and loads it. Needs torch and ``jsonckpt_reader.py``.

    python checkpoint_to_json.py best.pt --output best.json --test-load

    from checkpoint_to_json import load_json_checkpoint
    checkpoint = load_json_checkpoint("best.json")
    model.load_state_dict(checkpoint["model_state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])

Put this file and ``jsonckpt_reader.py`` beside the notebook or the checkpoint.
``load_json_checkpoint`` reads files of jsonckpt, and the number lists of older converters:
``{"data", "shape", "dtype"}``. What is written is a checkpoint of jsonckpt. Where jsonckpt is
installed, it does the work: it knows more types and is faster. Code in a ``.pt`` file is never run.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import itertools
import json
import math
import os
import re
import sys
import time
import uuid
from typing import Any

import torch

CHUNK = 1 << 20  # raw bytes of a chunk
OURS = re.compile(rb'\s*\{\s*"format"\s*:\s*"jsonckpt\.')
Json = Any


def reader() -> Any:
    """The module ``jsonckpt_reader``, from the directory of this file."""
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "jsonckpt_reader.py")
    if "jsonckpt_reader" not in sys.modules and os.path.isfile(here):
        spec: Any = importlib.util.spec_from_file_location("jsonckpt_reader", here)
        module = sys.modules["jsonckpt_reader"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    try:
        return importlib.import_module("jsonckpt_reader")
    except ImportError as error:
        raise ImportError(
            "jsonckpt_reader.py is not here. Copy it into the directory of checkpoint_to_json.py: "
            "jsonckpt export-reader DIRECTORY writes both files"
        ) from error


# --- loading ---


def load_json_checkpoint(path: Any, device: Any = "cpu") -> Any:
    """The checkpoint in a JSON file of jsonckpt or of an older converter, or in a directory.

    Args:
        path: of the file or directory.
        device: where the tensors go.
    """
    path = os.fspath(path)
    if os.path.isdir(path) or path.endswith(".zst"):
        return reader().load(path, device)
    with open(path, "rb") as file:
        is_ours = OURS.match(file.read(4096)) is not None
    if is_ours:
        return reader().load(path, device)
    with open(path, encoding="utf-8") as text:
        try:
            found = json.load(text, object_hook=lambda members: _of_lists(members, device))
        except (ValueError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
            raise ValueError(f"{path}: not a checkpoint in JSON: {error}") from error
    if not any(isinstance(leaf, torch.Tensor) for leaf in _leaves(found)):
        raise ValueError(f"{path}: there is no tensor in it")
    return found


def _of_lists(members: dict[str, Any], device: Any) -> Any:
    """A tensor for {data, shape, dtype}, and an optimizer as load_state_dict takes it."""
    if "data" in members and "shape" in members and members.keys() <= {"data", "shape", "dtype"}:
        dtype = getattr(torch, str(members.get("dtype", "float32")).replace("torch.", "", 1))
        return torch.tensor(members["data"], dtype=dtype, device=device).reshape(members["shape"])
    if isinstance(members.get("state"), dict) and isinstance(members.get("param_groups"), list):
        state = {int(k) if k.isdecimal() else k: v for k, v in members["state"].items()}
        groups = [
            {k: tuple(v) if k == "betas" else v for k, v in group.items()}
            for group in members["param_groups"]
        ]
        return {**members, "state": state, "param_groups": groups}
    return members


def _leaves(node: Any) -> Any:
    if isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _leaves(value)
    else:
        yield node


# --- writing (docs/format.md of jsonckpt: one file, base64, sha256) ---


def save_json_checkpoint(checkpoint: Any, path: Any) -> None:
    """Write a checkpoint to ``path``, a name that ends in ``.json``.

    What was there is replaced when the new file is whole.

    Raises:
        TypeError: a value that this small writer does not know.
    """
    path = os.fspath(path)
    if not path.endswith(".json"):
        raise ValueError(f"{path}: the name of the output must end in .json")
    tree = _Tree()
    state = tree.node(checkpoint, "")
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            _write(file, state, tree.records)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


class _Tree:
    """Turns a state into JSON and a table of tensors."""

    def __init__(self) -> None:
        self.records: dict[str, torch.Tensor] = {}
        self.places: dict[Any, str] = {}

    def node(self, value: Any, name: str) -> Json:
        """The JSON of a value, whose tensors are added to ``records``."""
        kind = type(value)
        if value is None or kind is bool or (kind is int and abs(value) < 10**600):
            return value
        if kind is str:
            value.encode()  # a lone surrogate is refused
            return value
        if kind is float:
            named = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
            return value if math.isfinite(value) else {"$float": named}
        if kind in (torch.Tensor, torch.nn.Parameter):
            return self.tensor(value, name)
        if kind in (list, tuple, set, frozenset):
            items = [self.node(item, f"{name}/{i}") for i, item in enumerate(value)]
            return items if kind is list else {f"${kind.__name__}": items}
        if kind is dict:
            items = self.items(value, name)
            return items if isinstance(items, dict) else {"$dict": items}
        if kind is collections.OrderedDict:
            body = {"items": self.items(value, name)}
            if hasattr(value, "_metadata"):
                body["metadata"] = self.node(value._metadata, f"{name}/_metadata")
            return {"$ordered_dict": body}
        if kind is torch.Size:
            return {"$size": list(value)}
        if kind in (torch.device, torch.dtype):
            return {f"${kind.__name__}": str(value).replace("torch.", "", 1)}
        raise TypeError(
            f"{name or 'the checkpoint'} is a {kind}; pip install jsonckpt saves more types"
        )

    def items(self, value: Any, name: str) -> Json:
        pairs = []
        for key, item in value.items():
            part = str(key).replace("~", "~0").replace("/", "~1")
            part = re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", part)
            pairs.append([self.node(key, name), self.node(item, f"{name}/{part}")])
        if all(type(key) is str and key[:1] != "$" for key in value):
            return dict(pairs)
        return pairs

    def tensor(self, value: torch.Tensor, name: str) -> Json:
        data = value.detach()
        if data.layout is not torch.strided or data.is_quantized or data.is_conj() or data.is_neg():
            raise TypeError(f"{name} is no plain tensor; pip install jsonckpt saves more kinds")
        while name in self.records:
            name = f"{name}#2"
        memory = (data.device, data.data_ptr(), data.dtype, data.shape, data.stride())
        first = self.places.setdefault(memory, name) if data.numel() else name
        if first == name:
            self.records[name] = data
            node: Json = {"$tensor": name}
        else:
            node = {"$tied": {"name": name, "of": first}}
        if type(value) is torch.nn.Parameter:
            return {"$parameter": {"data": node, "requires_grad": value.requires_grad}}
        return {"$requires_grad": node} if value.requires_grad else node


def _compact(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _write(file: Any, state: Json, records: dict[str, torch.Tensor]) -> None:
    seal, index, at = hashlib.sha256(), [], 0

    def put(text: bytes, *, payload: bool = False) -> None:
        nonlocal at
        file.write(text)
        at += len(text)
        if not payload:
            seal.update(text)

    save_id = uuid.uuid4().hex
    head = {"format": "jsonckpt.shard", "version": 1, "save_id": save_id, "checksum": "sha256"}
    put(_compact(head)[:-1] + b",\n")
    total = sum(tensor.numel() * tensor.element_size() for tensor in records.values())
    for key, value in (
        ("created_at", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
        ("created_by", "checkpoint_to_json.py"),
        ("totals", {"tensors": len(records), "bytes": total}),
        ("metadata", {}),
        ("state", state),
    ):
        put(_compact(key) + b":" + _compact(value) + b",\n")
    put(b'"tensors":[\n')
    for number, (name, tensor) in enumerate(records.items()):
        start, record = at, _record(name, tensor)
        places: list[list[int]] = []
        sums: list[str] = []
        put(_compact(record)[:-1] + b',"chunks":[\n')
        for chunk in _chunks(tensor, record["chunk_bytes"]):
            text = base64.b64encode(chunk)
            put(b',\n"' if sums else b'"')
            places.append([at, len(text)])
            put(text, payload=True)
            put(b'"')
            sums.append(hashlib.sha256(chunk).hexdigest())
        put(b"\n" if sums else b"")
        shape = ",".join(map(str, record["shape"]))
        facts = [
            name,
            record["dtype"],
            shape,
            record.get("device", "cpu"),
            "base64",
            "none",
            "none",
        ]
        lines = "".join(f"{fact}\n" for fact in [*facts, record["chunk_bytes"], *sums])
        digest = hashlib.sha256(lines.encode()).hexdigest()
        put(b"]," + _compact({"sha256": sums, "digest": digest})[1:])
        index.append([start, at - start, places])
        put(b",\n" if number + 1 < len(records) else b"\n")
    put(b'],"index":')
    offset = at
    put(_compact(index))
    file.write(f',"seal":"sha256:{seal.hexdigest()}","index_offset":{offset:20d}}}\n'.encode())


def _record(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    shape, stride = list(tensor.shape), list(tensor.stride())
    record: dict[str, Any] = {"name": name, "dtype": str(tensor.dtype)[6:], "shape": shape}
    if tensor.device.type != "cpu":
        record["device"] = str(tensor.device)
    steps = sorted((step, size) for step, size in zip(stride, shape) if size > 1)
    ends = itertools.accumulate((size for _, size in steps), lambda a, b: a * b, initial=1)
    is_dense = all(step == end for (step, _), end in zip(steps, ends))
    if is_dense and not tensor.is_contiguous() and tensor.numel():
        record["stride"] = stride
    chunk = CHUNK - CHUNK % tensor.element_size()
    record.update(encoding="base64", compression="none", filter="none", chunk_bytes=chunk)
    return record


def _chunks(tensor: torch.Tensor, step: int) -> Any:
    """The bytes of a tensor in row-major order, ``step`` at a time."""
    plain = tensor.cpu().contiguous()
    end = plain.numel() * plain.element_size()
    for start in range(0, end, step):
        yield ctypes.string_at(plain.data_ptr() + start, min(step, end - start))


# --- the command ---


def convert_checkpoint_to_json(source: Any, output: Any) -> None:
    """Convert a ``.pt`` file to JSON, with jsonckpt where it is installed."""
    if importlib.util.find_spec("jsonckpt") is not None:
        convert: Any = importlib.import_module("jsonckpt.convert")
        convert.convert(source, output, to="json", overwrite=True)
    else:
        save_json_checkpoint(torch.load(source, map_location="cpu", weights_only=True), output)


def differences(one: Any, two: Any, place: str = "") -> Any:
    """Where two checkpoints differ, compared bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        pairs = zip(_chunks(one.detach(), CHUNK), _chunks(two.detach(), CHUNK))
        same = (one.dtype, one.shape) == (two.dtype, two.shape)
        if not (same and all(first == second for first, second in pairs)):
            yield place
    elif isinstance(one, dict) and isinstance(two, dict):
        if [*one] != [*two]:
            yield f"{place}: the keys"
        for key in one.keys() & two.keys():
            yield from differences(one[key], two[key], f"{place}/{key}")
    elif isinstance(one, (list, tuple)) and type(one) is type(two) and len(one) == len(two):
        for number, pair in enumerate(zip(one, two)):
            yield from differences(*pair, f"{place}/{number}")
    elif type(one) is not type(two) or (repr(one) != repr(two) and one != two):
        yield place


def main() -> int:
    """Run the command. Returns the exit code: 0, or 3 where the test finds a difference."""
    parser = argparse.ArgumentParser(description="Convert a PyTorch checkpoint to JSON.")
    parser.add_argument("checkpoint", help="the .pt file")
    parser.add_argument(
        "--output", help="the JSON file (default: the name of the input with .json)"
    )
    parser.add_argument("--test-load", action="store_true", help="load it and compare every value")
    arguments = parser.parse_args()
    output = arguments.output or os.path.splitext(arguments.checkpoint)[0] + ".json"
    try:
        return _run(arguments.checkpoint, output, arguments.test_load)
    except Exception as error:  # of torch, of jsonckpt, of the system
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(source: str, output: str, test_load: bool) -> int:
    convert_checkpoint_to_json(source, output)
    sizes = [os.path.getsize(path) / 1e6 for path in (source, output)]
    print(f"{source}: {sizes[0]:.1f} MB")
    print(f"{output}: {sizes[1]:.1f} MB, {sizes[1] / sizes[0]:.2f} times as much")
    if test_load:
        original = torch.load(source, map_location="cpu", weights_only=True)
        found = [*differences(original, load_json_checkpoint(output))]
        for place in found[:10]:
            print(f"differs: {place}")
        print(
            "loaded and compared: " + (f"{len(found)} differences" if found else "all is the same")
        )
        return 3 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
