"""A second reader of the format, written from docs/format.md alone.

It imports nothing of jsonckpt, is simple rather than fast, and holds everything in memory. It
checks what the standard library can check: everything but the checksums xxh3_128 and blake3.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import pathlib
import re
from collections.abc import Collection
from typing import Any

import torch
import zstandard

from tests.independent_values import TAGS, need, parse, read_list


def check_sum(algorithm: str, data: bytes, expected: str) -> None:
    digits = {"xxh3_128": 32, "sha256": 64, "blake3": 64}[algorithm]
    need(re.fullmatch(f"[0-9a-f]{{{digits}}}", expected), f"{expected!r} is no {algorithm}")
    if algorithm == "sha256":
        need(hashlib.sha256(data).hexdigest() == expected, "the checksum differs")


def check_head(document: dict[str, Any], kind: str, sealed: bytes) -> None:
    need(document["format"] == kind, "format")
    need(type(document["version"]) is int and document["version"] == 1, "version")
    need(re.fullmatch("[0-9a-f]{32}", document["save_id"]), "save_id")
    check_requires(document, ["shared_shards"] if kind == "jsonckpt.manifest" else ())
    names = [record["name"] for record in document["tensors"]]
    listed = any(name.startswith("$region/") for name in names) and "shards" in document
    needed = listed or (any(name.startswith("$region/") for name in names) and "state" in document)
    need(not needed or "regions" in document.get("requires", []), "requires names regions")
    if document["seal"] is not None:
        algorithm, _, digest = document["seal"].partition(":")
        need(kind != "jsonckpt.shard" or algorithm == document["checksum"], "the seal's algorithm")
        check_sum(algorithm, sealed, digest)


def check_requires(document: dict[str, Any], also: Collection[str] = ()) -> None:
    required = document.get("requires", [])
    need(type(required) is list and all(type(one) is str for one in required), "requires")
    need(
        set(required) <= {"regions", *also}, "a feature that this reader does not know is required"
    )


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
    if not re.search(rb'"seal":"[^"]*","index_offset":[ 0-9]{20}\}\n\Z', text):
        return read_any_layout(text)
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


class Number(str):
    """A number as it is spelled."""


def read_any_layout(text: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The same of a file that was edited (section 3.3)."""
    document, tensors = parse(text), {}
    need(document["seal"] is None, "another layout goes with a seal of null only")
    check_head(document, "jsonckpt.shard", b"")
    spelled = json.loads(text, parse_int=Number, parse_float=Number)
    for record, found in zip(document["tensors"], spelled["tensors"], strict=True):
        need(record["name"] not in tensors, "a name stands twice")
        chunks = [payload_text(chunk) for chunk in found["chunks"]]
        tensors[record["name"]] = read_record(record, chunks, document["checksum"])
    return document, tensors


def payload_text(chunk: Any) -> bytes:
    if isinstance(chunk, str):
        return chunk.encode()
    return ",".join(n if isinstance(n, Number) else json.dumps(n) for n in chunk).encode()


def read_record(record: dict[str, Any], chunks: list[bytes], algorithm: str) -> torch.Tensor:
    name, shape, step = record["dtype"], record["shape"], record["chunk_bytes"]
    codec = [record[key] for key in ("encoding", "compression", "filter")]
    item = getattr(torch, name).itemsize
    nbytes, sums, raw = math.prod(shape) * item, record[algorithm], bytearray()
    check_requires(record)
    if record["name"].startswith("$region/"):
        need("regions" in record.get("requires", []), "requires names regions")
        need(not {"stride", "storage"} & set(record), "a region is row-major, in its own memory")
        offset = re.match(r"\$region/([0-9,]*)(/|$)", record["name"])
        need(offset and len(offset[1].split(",")) == max(len(shape), 1), "the name of a region")
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
    rows = [math.prod(max(size, 1) for size in shape[i + 1 :]) for i in range(len(shape))]
    tensor = strided(memory, name, shape, rows, 0)
    check_storage(record, nbytes, item)
    if "stride" not in record:
        return tensor
    stride = record["stride"]
    check_stride(shape, stride, item)
    turned = strided(torch.empty(nbytes, dtype=torch.uint8), name, shape, stride, 0)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(item)
    one, other = (turned, tensor) if bits is None else (turned.view(bits), tensor.view(bits))
    one.copy_(other)
    return turned


def check_stride(shape: list[int], stride: list[int], item: int) -> None:
    need(type(stride) is list and len(stride) == len(shape), "a stride for each dimension")
    need(all(type(step) is int and 0 <= step * item < 2**63 for step in stride), "a stride")
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        need(size < 2 or step == expected, "the strides of a dense tensor")
        expected *= size if size > 1 else 1


def check_storage(record: dict[str, Any], nbytes: int, item: int) -> None:
    if "storage" in record:
        place = record["storage"]
        need(type(place) is list and len(place) == 3, "storage")
        need(all(type(part) is int and part >= 0 for part in place), "storage")
        need(nbytes and place[1] % item == 0, "the place in a storage")
        need(place[1] + nbytes <= place[2] < 2**63, "a place in its storage")


def share_storages(
    records: list[dict[str, Any]], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors; those of one storage in one piece of memory."""
    rooms: dict[int, torch.Tensor] = {}
    ends: dict[int, int] = {}
    placed = [record for record in records if "storage" in record]
    for record in sorted(placed, key=lambda record: record["storage"]):
        number, offset, size = record["storage"]
        alone = tensors[record["name"]]
        room = rooms.setdefault(number, torch.zeros(size, dtype=torch.uint8))
        need(room.numel() == size, "the size of a storage")
        need(offset >= ends.get(number, 0), "two records lie on each other")
        nbytes = alone.untyped_storage().nbytes()
        ends[number] = offset + nbytes
        room[offset : offset + nbytes].copy_(
            torch.empty(0, dtype=torch.uint8).set_(alone.untyped_storage(), 0, (nbytes,), (1,))
        )
        at = offset // alone.itemsize
        tensors[record["name"]] = strided(room, record["dtype"], alone.shape, alone.stride(), at)
    return tensors


def strided(
    memory: torch.Tensor,
    dtype: str,
    shape: Any,
    stride: Any,
    offset: int,
    end: int | None = None,
) -> torch.Tensor:
    need(offset >= 0 and min(stride, default=0) >= 0, "offset and strides are not negative")
    empty = torch.empty(0, dtype=torch.uint8).view(getattr(torch, dtype))
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    bound = memory.untyped_storage().nbytes() if end is None else end
    need(0 in shape or (last + 1) * empty.itemsize <= bound, "a view lies inside its record")
    return empty.set_(memory.untyped_storage(), offset, shape, stride)


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
    if tag in ("$tensor", "$regions"):
        return tensors[body if tag == "$tensor" else body["name"]]
    if tag == "$tied":
        return tensors[body["of"]]
    if tag == "$view":
        memory, item = tensors[body["of"]], getattr(torch, body["dtype"]).itemsize
        need(memory.is_contiguous(), "the record of a view is row-major")
        start = int(memory.storage_offset()) * memory.itemsize
        need(start % item == 0, "the record of a view is aligned for it")
        at, end = start // item + body["offset"], start + int(memory.nbytes)
        return strided(memory, body["dtype"], body["shape"], body["stride"], at, end)
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
        tensors = share_storages(document["tensors"], tensors)
        return document["state"], put_together(document["state"], tensors, {})
    text = (path / "manifest.json").read_bytes()
    manifest, end = parse(text), text.rfind(b',\n"seal":')
    last = list(manifest)[-1] == "seal" and b"\n" not in text[end + 2 :].rstrip()
    need(manifest["seal"] is None or last, "the last line")
    check_head(manifest, "jsonckpt.manifest", text[:end])
    tensors, rows, stored = {}, [], 0
    for number, shard in enumerate(manifest["shards"]):
        need(re.fullmatch(r"shard-[0-9a-z-]{1,100}\.json(\.zst)?", shard["file"]), "a file name")
        if "directory" in shard or "save_id" in shard:
            need("shared_shards" in manifest.get("requires", []), "shared_shards is required")
        if "directory" in shard:
            need(shard["directory"].strip("./"), "a name of dots only")
            unsafe = r"/\\\x00-\x1f\x7f-\x9f"
            need(re.fullmatch(rf"\.\./[^{unsafe}]{{1,100}}", shard["directory"]), "a directory")
        file = path / shard.get("directory", ".") / shard["file"]
        content = file_text(file)
        sizes = (file.stat().st_size, len(content))
        need(sizes == (shard["bytes"], shard["text_bytes"]), "the sizes of a shard")
        document, found = read_shard(content)
        save_id = shard.get("save_id", manifest["save_id"])
        for key, value in (("seal", shard["seal"]), ("save_id", save_id)):
            need(document[key] == value, f"{key} of a shard")
        need(document["checksum"] == manifest["checksum"], "checksum of a shard")
        need(not set(tensors) & set(found), "a name stands twice")
        tensors |= found
        for record in document["tensors"]:
            offset, length, places = record.pop("row")
            chunks = [[*p, s] for p, s in zip(places, record[document["checksum"]], strict=True)]
            stored += sum(size for _, size in places)
            rows.append({"shard": number, "offset": offset, "length": length, "chunks": chunks})
            rows[-1] |= {key: record[key] for key in record if key in (*OPTIONAL, *IDENTITY)}
    said = [{**entry, **manifest["codecs"][entry["codec"]]} for entry in manifest["tensors"]]
    known = {"shard", "offset", "length", "chunks", *OPTIONAL, *IDENTITY}
    need(rows == [{k: e[k] for k in e if k in known} for e in said], "the manifest agrees")
    nbytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    totals = {"tensors": len(rows), "bytes": nbytes, "stored_bytes": stored}
    need(manifest["totals"] == {**totals, "shards": len(manifest["shards"])}, "totals")
    tensors = share_storages(rows, tensors)
    return manifest["state"], put_together(manifest["state"], tensors, {})


# --- regions (section 6.5) ---


def put_together(
    state: Any, tensors: dict[str, torch.Tensor], known: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors, and those of the state that several records hold."""
    for member in state if isinstance(state, list) else []:
        put_together(member, tensors, known)
    if not isinstance(state, dict):
        return tensors
    if list(state) != ["$regions"]:
        put_together(list(state.values()), tensors, known)
        return tensors
    body = state["$regions"]
    name, shape, parts = body["name"], body["shape"], body["parts"]
    if name in known:
        need(known[name] == body, "two tensors have one name")
        return tensors
    device = body.get("device", "cpu")
    need(re.fullmatch(r"[a-z]{1,20}(:[0-9]{1,5})?", device), "the device of a tensor in regions")
    need(re.match("/|$", name) and name not in tensors, "the name of a tensor in regions")
    known[name] = body
    item = getattr(torch, body["dtype"]).itemsize
    memory = torch.zeros(math.prod(shape) * item, dtype=torch.uint8)
    grid, seen = memory.view(*shape, item), torch.zeros(shape, dtype=torch.int32)
    need(parts and len({str(part["offset"]) for part in parts}) == len(parts), "the parts")
    for part in parts:
        offset = part["offset"]
        need(all(type(at) is int and at >= 0 for at in offset), "an offset")
        need(part["of"] == f"$region/{','.join(map(str, offset))}{name}", "the name of a part")
        piece = tensors.pop(part["of"])
        need(piece.dtype == getattr(torch, body["dtype"]), "the dtype of a part")
        stops = [at + size for at, size in zip(offset, piece.shape, strict=True)]
        need(all(map(int.__le__, stops, shape)), "a part lies in its tensor")
        box = tuple(map(slice, offset, stops))
        raw = torch.empty(0, dtype=torch.uint8).set_(piece.untyped_storage())
        grid[box].copy_(raw.view(*piece.shape, item))
        seen[box] += 1
    need((seen == 1).all(), "the parts cover each element once")
    rows = [math.prod(max(size, 1) for size in shape[i + 1 :]) for i in range(len(shape))]
    tensors[name] = strided(memory, body["dtype"], shape, rows, 0)
    return tensors


OPTIONAL = ("device", "stride", "storage")
IDENTITY = ("name", "dtype", "shape", "encoding", "compression", "filter", "chunk_bytes")
