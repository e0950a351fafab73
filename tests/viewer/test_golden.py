"""The reader in JavaScript against all golden checkpoints: each tensor bit for bit, the state."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from tests import independent_reader
from tests.golden.cases import CASES, Case
from tests.support import tensor_bytes
from tests.viewer.node import run, unpacked

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
NEEDED = [case for case in CASES if all(hasattr(torch, name) for name in case.needs)]


def numbers_apart(text: str) -> Any:
    """JSON with integers and floats apart, and every digit of both."""
    return json.loads(
        text,
        parse_int=lambda digits: ("int", int(digits)),
        parse_float=lambda digits: ("float", float(digits).hex()),
    )


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the reader says of all golden checkpoints, by path, and their byte strings."""
    out = tmp_path_factory.mktemp("viewer") / "bytes"
    paths = [GOLDEN / case.path for case in NEEDED]
    found = numbers_apart(run("dump.mjs", out, *paths).decode())
    parts = iter(unpacked(out.read_bytes()))
    result = {}
    for case, facts in zip(NEEDED, found, strict=True):
        assert "error" not in facts, f"{case.path}: {facts}"
        count = facts["records"][1]  # a record gives two byte strings, a reference one
        tensors = {}
        for position, name in enumerate(facts["names"]):
            raw = next(parts) if position < count else None
            tensors[name] = (raw, next(parts))
        result[case.path] = {**facts, "tensors": tensors}
    assert next(parts, None) is None
    return result


def document(path: Path) -> Any:
    """The manifest or the text of a single file, with numbers apart."""
    file = path / "manifest.json" if path.is_dir() else path
    return numbers_apart(independent_reader.file_text(file).decode())


def values_as_float64(tensor: torch.Tensor, dtype: str) -> np.ndarray[Any, Any] | None:
    """The numbers of a tensor in row-major order; None where torch cannot compute with them."""
    if dtype in ("int64", "uint64"):
        return tensor.contiguous().numpy().ravel()
    if dtype.startswith("complex"):
        wide = tensor.contiguous().to(torch.complex128)
        return torch.view_as_real(wide).numpy().ravel()
    if dtype == "float4_e2m1fn_x2" or re.fullmatch(r"u?int[1-7]|bits.*", dtype):
        return None
    return tensor.contiguous().to(torch.float64).numpy().ravel()


@pytest.mark.parametrize("case", NEEDED, ids=lambda case: case.path)
def test_golden_checkpoint(case: Case, dumped: dict[str, Any]) -> None:
    path, found = GOLDEN / case.path, dumped[case.path]
    text = document(path)
    assert found["state"] == text["state"]
    assert found["metadata"] == text["metadata"]
    tree, tensors = independent_reader.read(path)
    assert set(tensors) == set(list(found["tensors"])[: found["records"][1]])
    for name, tensor in tensors.items():
        raw, values = found["tensors"][name]
        assert raw == tensor_bytes(tensor), name
        _check_values(values, tensor, name)
    for name, tensor in _references(tree, tensors).items():
        _check_values(found["tensors"][name][1], tensor, name)


def _check_values(values: bytes, tensor: torch.Tensor, name: str) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    expected = values_as_float64(tensor, dtype)
    if expected is None:
        return
    got = np.frombuffer(values, expected.dtype)
    np.testing.assert_array_equal(got, expected, err_msg=name)
    if expected.dtype == np.float64:
        assert (np.signbit(got) == np.signbit(expected))[~np.isnan(expected)].all(), name


def _references(node: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tied tensors and views of a state tree, by name."""
    if isinstance(node, list):
        return {k: v for element in node for k, v in _references(element, tensors).items()}
    if not isinstance(node, dict):
        return {}
    if set(node) in ({"$tied"}, {"$view"}):
        [body] = node.values()
        return {body["name"]: independent_reader.resolve(node, tensors)}
    return {k: v for member in node.values() for k, v in _references(member, tensors).items()}


def test_numbers_of_every_bit_pattern(tmp_path: Path) -> None:
    """All values of the small floats, by torch, and of float4, which torch cannot compute with."""
    names = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
    names += ["float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2"]
    state = {}
    for name in [name for name in names if hasattr(torch, name)]:
        two = name in ("float16", "bfloat16")
        codes = np.arange(1 << (16 if two else 8), dtype="<u2" if two else "u1")
        state[name] = torch.from_numpy(codes.view("<i2" if two else "u1")).view(
            getattr(torch, name)
        )
    for encoding in ("base64", "list"):
        path = tmp_path / f"{encoding}.json"
        jsonckpt.save(state, path, encoding=encoding)
        [facts] = numbers_apart(run("dump.mjs", tmp_path / "out", path).decode())
        parts = unpacked((tmp_path / "out").read_bytes())
        for name, raw, values in zip(facts["names"], parts[0::2], parts[1::2], strict=True):
            tensor = state[name[1:]]
            assert raw == tensor_bytes(tensor)
            _check_values(values, tensor, name)
            if name == "/float4_e2m1fn_x2":
                numbers = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
                signed = [*numbers, *(-number for number in numbers)]
                expected = [signed[half] for code in range(256) for half in (code & 15, code >> 4)]
                assert np.frombuffer(values).tolist() == expected


def test_an_edited_file_in_any_layout(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"w": weight, "l": [1.5], "step": 2**100}
    forms: list[dict[str, Any]] = [{}, {"encoding": "list"}, {"compression": "zstd"}]
    for options in forms:
        path = tmp_path / "c.json"
        jsonckpt.save(state, path, **options)
        document = {**json.loads(path.read_text()), "seal": None}
        escaped = json.dumps(document, indent=2).replace("A", "\\u0041")
        path.write_text(escaped if "encoding" not in options else json.dumps(document, indent=2))
        [facts] = json.loads(run("dump.mjs", tmp_path / "out", path))
        assert facts["state"]["step"] == 2**100
        raw, _ = unpacked((tmp_path / "out").read_bytes())
        assert raw == tensor_bytes(weight)
