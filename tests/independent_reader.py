"""A second reader of the format, written from docs/format.md alone.

It imports nothing of jsonckpt, is simple rather than fast, and holds everything in memory. It
checks what the standard library can check: everything but the checksums xxh3_128 and blake3.
"""

from __future__ import annotations

import argparse
import base64
import collections
import datetime
import decimal
import fractions
import hashlib
import io
import json
import math
import pathlib
import re
import struct
import types
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

import numpy as np  # only for the NumPy values of a state
import torch
import zstandard

# --- JSON, checksums, files (sections 2 and 5) ---


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


def check_sum(algorithm: str, data: bytes, expected: str) -> None:
    digits = {"xxh3_128": 32, "sha256": 64, "blake3": 64}[algorithm]
    need(re.fullmatch(f"[0-9a-f]{{{digits}}}", expected), f"{expected!r} is no {algorithm}")
    if algorithm == "sha256":
        need(hashlib.sha256(data).hexdigest() == expected, "the checksum differs")


def check_head(document: dict[str, Any], kind: str, sealed: bytes) -> None:
    need(document["format"] == kind, "format")
    need(type(document["version"]) is int and document["version"] == 1, "version")
    need(re.fullmatch("[0-9a-f]{32}", document["save_id"]), "save_id")
    need(not document.get("requires"), "a feature that this reader does not know is required")
    if kind == "jsonckpt.shard" or document["seal"] is not None:
        algorithm, _, digest = document["seal"].partition(":")
        need(kind != "jsonckpt.shard" or algorithm == document["checksum"], "the seal's algorithm")
        check_sum(algorithm, sealed, digest)


def file_text(path: pathlib.Path) -> bytes:
    if path.suffix != ".zst":
        return path.read_bytes()
    frames = zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(path.read_bytes()), read_across_frames=True
    )
    return frames.read()


# --- shards and records (section 3) ---


def read_shard(text: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a shard says besides its payloads, and its tensors by name."""
    mark = b'\n"tensors":[\n'
    at = text.index(mark) + len(mark)
    skeleton, index, payloads = bytearray(text[:at]), [], []
    while text[at : at + 1] == b"{":
        begin, end = at, text.index(b"\n", at) + 1
        need(text[at:end].endswith(b'"chunks":[\n'), "a record's head line")
        skeleton += text[at:end]
        ranges: list[list[int]] = []
        while text[end : end + 1] in (b'"', b"["):
            at, end = end, text.index(b"\n", end) + 1
            close = end - 2 - (text[end - 2 : end - 1] == b",")
            need(text[at : at + 1] + text[close : close + 1] in (b'""', b"[]"), "a chunk's line")
            skeleton += text[at : at + 1] + text[close:end]
            ranges.append([at + 1, close - at - 1])
        need(text[end : end + 1] == b"]", "a record's tail line")
        at, end = end, text.index(b"\n", end) + 1
        skeleton += text[at:end]
        index.append([begin, len(text[begin:end].rstrip(b",\n")), ranges])
        payloads.append([text[start : start + size] for start, size in ranges])
        at = end
    skeleton += text[at:]
    everything = bytes(skeleton)
    trailer = rb'\],"index":\S+,"seal":"\S+","index_offset":[ 0-9]{20}\}\n'
    need(re.fullmatch(trailer, text[at:]), "the trailer")
    # With the payloads gone all else is one small JSON text, commas and brackets included.
    document = parse(everything)
    need(document["index"] == index, "the index says where records and payloads lie")
    need(document["index_offset"] == at + len('],"index":'), "index_offset")
    check_head(document, "jsonckpt.shard", everything[: everything.rindex(b',"seal":')])
    tensors = {}
    for record, chunks, row in zip(document["tensors"], payloads, index, strict=True):
        need(record["name"] not in tensors, "a name stands twice")
        tensors[record["name"]] = read_record(record, chunks, document["checksum"])
        record["row"] = row
    return document, tensors


def read_record(record: dict[str, Any], chunks: list[bytes], algorithm: str) -> torch.Tensor:
    name, shape, step = record["dtype"], record["shape"], record["chunk_bytes"]
    codec = [record[key] for key in ("encoding", "compression", "filter")]
    item = getattr(torch, name).itemsize
    nbytes, sums, raw = math.prod(shape) * item, record[algorithm], bytearray()
    need(not record.get("requires"), "a feature that this reader does not know is required")
    need(step > 0 and step % item == 0, "chunk_bytes")
    need(len(chunks) == len(sums) == -(-nbytes // step), "the number of chunks")
    for payload, checksum in zip(chunks, sums, strict=True):
        size = min(step, nbytes - len(raw))
        data = read_chunk(payload, size, name, item, codec)
        need(len(data) == size, "a chunk's raw size")
        check_sum(algorithm, data, checksum)
        raw += data
    need(name != "bool" or not raw.strip(b"\0\1"), "a bool is 0 or 1")
    identity = [record["name"], name, ",".join(map(str, shape)), record.get("device", "cpu")]
    identity += [*codec, step, *sums]
    check_sum(algorithm, "".join(f"{line}\n" for line in identity).encode(), record["digest"])
    memory = torch.empty(nbytes, dtype=torch.uint8)
    memory.copy_(torch.tensor(list(raw), dtype=torch.uint8))
    stride = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return strided(memory, name, shape, stride, 0)


def strided(memory: torch.Tensor, dtype: str, shape: Any, stride: Any, offset: int) -> torch.Tensor:
    need(offset >= 0 and min(stride, default=0) >= 0, "offset and strides are not negative")
    empty = torch.empty(0, dtype=torch.uint8).view(getattr(torch, dtype))
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    bound = memory.untyped_storage().nbytes()
    need(0 in shape or (last + 1) * empty.itemsize <= bound, "a view lies inside its record")
    return empty.set_(memory.untyped_storage(), offset, shape, stride)


# --- chunks (section 4) ---


def read_chunk(payload: bytes, size: int, dtype: str, item: int, codec: list[str]) -> bytes:
    encoding, compression, shuffle = codec
    if encoding == "list":
        need(compression == shuffle == "none", "a list is neither compressed nor filtered")
        return read_list(b"[" + payload + b"]", dtype, item)
    data = base64.b64decode(payload, validate=True)
    need(base64.b64encode(data) == payload, "base64 has one spelling")
    if compression == "zstd":
        frame, reader = zstandard.get_frame_parameters(data), zstandard.ZstdDecompressor()
        need(frame.content_size == size and not frame.dict_id, "the content size of the frame")
        need(frame.window_size <= 64 << 20, "the window of the frame")
        one = reader.decompressobj()
        data = one.decompress(data)
        need(one.eof and not one.unused_data, "nothing stands after the frame")
    if shuffle == "shuffle":
        data = b"".join(data[i :: len(data) // item] for i in range(len(data) // item))
    return data


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


# --- the state tree (section 6) ---


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


def resolve(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The Python value of a state tree."""
    if isinstance(node, list):
        return [resolve(element, tensors) for element in node]
    if not isinstance(node, dict):
        return node
    value = {key: resolve(member, tensors) for key, member in node.items()}
    [tag, *others] = [*value, ""]
    if others != [""] or not tag.startswith("$"):
        return value
    body = value[tag]
    if tag == "$tensor":
        return tensors[body]
    if tag == "$tied":
        return tensors[body["of"]]
    if tag == "$view":
        memory = tensors[body["of"]]
        return strided(memory, body["dtype"], body["shape"], body["stride"], body["offset"])
    need(tag in TAGS, f"a type is registered under {tag[1:]}, which this reader lacks")
    return TAGS[tag](body)


# --- checkpoints (sections 3 and 5) ---


def load(path: str | pathlib.Path) -> Any:
    """The state of the checkpoint at ``path``: a directory, a .json or a .json.zst."""
    return resolve(*read(path))


def read(path: str | pathlib.Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The state tree as JSON, and the tensors by name."""
    path = pathlib.Path(path)
    if not path.is_dir():
        document, tensors = read_shard(file_text(path))
        nbytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
        need(document["totals"] == {"tensors": len(tensors), "bytes": nbytes}, "totals")
        return document["state"], tensors
    text = (path / "manifest.json").read_bytes()
    manifest, end = parse(text), text.rindex(b',\n"seal":')
    need(list(manifest)[-1] == "seal" and b"\n" not in text[end + 2 :].rstrip(), "the last line")
    check_head(manifest, "jsonckpt.manifest", text[:end])
    tensors, rows, stored = {}, [], 0
    for number, shard in enumerate(manifest["shards"]):
        need(re.fullmatch(r"shard-[0-9a-z-]{1,100}\.json(\.zst)?", shard["file"]), "a file name")
        file = path / shard["file"]
        content = file_text(file)
        sizes = (file.stat().st_size, len(content))
        need(sizes == (shard["bytes"], shard["text_bytes"]), "the sizes of a shard")
        document, found = read_shard(content)
        for key, value in (("seal", shard["seal"]), ("save_id", manifest["save_id"])):
            need(document[key] == value, f"{key} of a shard")
        need(document["checksum"] == manifest["checksum"], "checksum of a shard")
        need(not set(tensors) & set(found), "a name stands twice")
        tensors |= found
        for record in document["tensors"]:
            offset, length, places = record.pop("row")
            chunks = [[*p, s] for p, s in zip(places, record[document["checksum"]], strict=True)]
            stored += sum(size for _, size in places)
            rows.append({"shard": number, "offset": offset, "length": length, "chunks": chunks})
            rows[-1] |= {key: record[key] for key in record if key in ("device", *IDENTITY)}
    said = [{**entry, **manifest["codecs"][entry["codec"]]} for entry in manifest["tensors"]]
    known = {"shard", "offset", "length", "chunks", "device", *IDENTITY}
    need(rows == [{k: e[k] for k in e if k in known} for e in said], "the manifest agrees")
    nbytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    totals = {"tensors": len(rows), "bytes": nbytes, "stored_bytes": stored}
    need(manifest["totals"] == {**totals, "shards": len(manifest["shards"])}, "totals")
    return manifest["state"], tensors


IDENTITY = ("name", "dtype", "shape", "encoding", "compression", "filter", "chunk_bytes")
