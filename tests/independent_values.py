"""What JSON values mean to the second reader: numbers of section 4.4, tags of section 6.2.

Written from docs/format.md alone, as tests/independent_reader.py, which this is a part of.
"""

from __future__ import annotations

import argparse
import base64
import collections
import datetime
import decimal
import fractions
import json
import math
import pathlib
import struct
import types
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np  # only for the NumPy values of a state
import torch


def need(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def parse(text: bytes, integer: Callable[[str], Any] = int) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "a member name stands twice in one object")
        return dict(pairs)

    def finite(token: str) -> float:
        need(math.isfinite(float(token)), f"{token} is no number of the format")
        return float(token)

    hooks = {"object_pairs_hook": unique, "parse_float": finite, "parse_constant": finite}
    value = json.loads(text.decode(), parse_int=integer, **hooks)  # type: ignore[arg-type]
    json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
    return value


NAN = {"float64": 0x7FF8 << 48, "float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0}
NAN |= {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E, "float8_e8m0fnu": 0xFF}
NAN |= {"float8_e4m3fnuz": 0x80, "float8_e5m2fnuz": 0x80}
COMPONENT = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def read_list(text: bytes, dtype: str, item: int) -> bytes:
    real = COMPONENT.get(dtype, dtype)
    if dtype == "float4_e2m1fn_x2":
        codes = [nearest_e2m1(abs(v)) + 8 * (math.copysign(1, v) < 0) for v in parse(text, float)]
        pairs = zip(codes[0::2], codes[1::2], strict=True)
        return bytes(low | high << 4 for low, high in pairs)
    if real in NAN:
        item //= 2 if dtype in COMPONENT else 1
        return b"".join(real_bits(v, real).to_bytes(item, "little") for v in parse(text, float))
    signed = dtype in ("int8", "int16", "int32", "int64")
    return b"".join(v.to_bytes(item, "little", signed=signed) for v in parse(text))


def real_bits(value: float | str, dtype: str) -> int:
    """The bit pattern of a number or of one of the strings for what is not finite."""
    dt = getattr(torch, dtype)
    if isinstance(value, str) and value not in ("Infinity", "-Infinity"):
        bits = NAN[dtype] if value == "NaN" else int(value, 16)
        need(value == "NaN" or len(value) == 2 + 2 * dt.itemsize, "the digits of a NaN")
        return bits
    if dtype == "float8_e8m0fnu":
        return nearest_power(float(value))
    number = torch.tensor(float(value), dtype=torch.float64)
    rounded = number if dtype == "float64" else number.to(torch.float32).to(dt)
    need(rounded.to(torch.float64).isfinite() != isinstance(value, str), "not a number of dtype")
    return int.from_bytes(bytes(rounded.reshape(1).view(torch.uint8).tolist()), "little")


def nearest_e2m1(value: float) -> int:
    need(value < 7, "not a number of the dtype")
    return min(range(8), key=lambda code: (abs(E2M1[code] - value), code % 2))


def nearest_power(value: float) -> int:
    """The exponent, with bias 127, of the power of two nearest to a value."""
    fraction, exponent = math.frexp(value)
    code = exponent + 126
    code += fraction > 0.75 or (fraction == 0.75 and code % 2 == 1)
    need(value > 0 and 0 <= code < 255, "not a number of the dtype")
    return code


def wide(value: float | str) -> float:
    bits = real_bits(value, "float64")
    return float(struct.unpack("<d", bits.to_bytes(8, "little"))[0])


def sparse(layout: str, shape: list[int], values: Any, **parts: Any) -> torch.Tensor:
    if layout == "coo":
        coalesced = parts["coalesced"]
        return torch.sparse_coo_tensor(parts["indices"], values, shape, is_coalesced=coalesced)
    kind, indices = getattr(torch, f"sparse_{layout}"), (parts["compressed"], parts["plain"])
    return torch.sparse_compressed_tensor(*indices, values, shape, layout=kind)


def quantized(q: dict[str, Any]) -> torch.Tensor:
    if "axis" not in q:
        return torch._make_per_tensor_quantized_tensor(q["data"], q["scale"], q["zero_point"])
    parts = q["data"], q["scale"], q["zero_point"], q["axis"]
    return torch._make_per_channel_quantized_tensor(*parts)


def ordered_dict(items: Any, **attributes: Any) -> Any:
    result: Any = collections.OrderedDict(items)
    if attributes:
        result._metadata = attributes["metadata"]
    return result


def moment(kind: Any, value: Any) -> Any:
    facts = {"iso": value} if isinstance(value, str) else dict(value)
    result = kind.fromisoformat(facts["iso"])
    if "zone" in facts:
        result = result.replace(tzinfo=zoneinfo.ZoneInfo(facts["zone"]))
    return result.replace(fold=facts.get("fold", 0))


def ndarray(dtype: str, shape: list[int], data: Any, order: str = "C") -> Any:
    kind = np.dtype(dtype)
    if isinstance(data, list):
        array = np.array(data, kind).reshape(shape)
    else:
        need(list(data.shape) == shape, "an array has the shape of its tensor")
        array = data.numpy().view(kind.newbyteorder("<"))
        array = array.byteswap().view(kind) if kind != kind.newbyteorder("<") else array
    return np.asfortranarray(array) if order == "F" else array


def scalar(dtype: str, value: Any) -> Any:
    kind = np.dtype(dtype)
    if kind.kind in "fc":
        part = f"float{8 * kind.itemsize // (1 + (kind.kind == 'c'))}"
        bits = [real_bits(v, part) for v in (value if kind.kind == "c" else [value])]
        raw = b"".join(b.to_bytes(kind.itemsize // len(bits), "little") for b in bits)
        return np.frombuffer(raw, kind)[0]
    if kind.kind in "US":
        return kind.type(value)  # an array would drop null characters at the end
    return np.array([value], "<i8" if kind.kind in "mM" else kind).view(kind)[0]


SIMPLE = (int, float, complex, bool, str, bytes, list, dict, set, tuple, frozenset)
FACTORIES: dict[str | None, Any] = {kind.__name__: kind for kind in SIMPLE}
FACTORIES |= {"OrderedDict": collections.OrderedDict, "deque": collections.deque, None: None}
PATHS = {"posix": pathlib.PurePosixPath, "windows": pathlib.PureWindowsPath}
# Each function gets the value of its tag with all tags in it resolved.
TAGS: dict[str, Callable[[Any], Any]] = {
    "$parameter": lambda p: torch.nn.Parameter(p["data"], p["requires_grad"]),
    "$requires_grad": lambda t: t.detach().requires_grad_(),
    "$sparse": lambda s: sparse(**s),
    "$quantized": quantized,
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$dict": dict,
    "$ordered_dict": lambda d: ordered_dict(**d),
    "$defaultdict": lambda d: collections.defaultdict(FACTORIES[d["factory"]], d["items"]),
    "$counter": lambda items: collections.Counter(dict(items)),
    "$deque": lambda d: collections.deque(d["items"], d["maxlen"]),
    "$int": lambda s: int(s, 16),
    "$float": wide,
    "$complex": lambda parts: complex(*map(wide, parts)),
    "$str": lambda s: base64.b64decode(s, validate=True).decode("utf-8", "surrogatepass"),
    "$bytes": lambda s: base64.b64decode(s, validate=True),
    "$bytearray": lambda s: bytearray(base64.b64decode(s, validate=True)),
    "$range": lambda parts: range(*parts),
    "$slice": lambda parts: slice(*parts),
    "$ellipsis": lambda _: ...,
    "$path": pathlib.Path,
    "$pure_path": lambda p: PATHS[p["flavour"]](p["path"]),
    "$datetime": lambda value: moment(datetime.datetime, value),
    "$date": datetime.date.fromisoformat,
    "$time": lambda value: moment(datetime.time, value),
    "$timedelta": lambda parts: datetime.timedelta(*parts),
    "$timezone": lambda parts: datetime.timezone(datetime.timedelta(*parts)),
    "$zone": zoneinfo.ZoneInfo,
    "$decimal": decimal.Decimal,
    "$fraction": lambda parts: fractions.Fraction(*parts),
    "$uuid": uuid.UUID,
    "$namespace": lambda items: argparse.Namespace(**dict(items)),
    "$simple_namespace": lambda items: types.SimpleNamespace(**dict(items)),
    "$ndarray": lambda a: ndarray(**a),
    "$scalar": lambda s: scalar(s["dtype"], s["value"]),
    "$numpy_dtype": np.dtype,
    "$dtype": lambda name: getattr(torch, name),
    "$device": torch.device,
    "$size": torch.Size,
    "$layout": lambda name: getattr(torch, name),
    "$memory_format": lambda name: getattr(torch, name),
    "$torch_version": torch.torch_version.TorchVersion,
}
