"""Reads jsonckpt checkpoints without jsonckpt: Python 3.9, torch 2.0 and this one file are enough.

    from jsonckpt_reader import load
    state = load("checkpoint.json")              # a directory, a .json or a .json.zst
    python jsonckpt_reader.py checkpoint.json    # on the command line: lists what is in it

Values and types come back exactly, and nothing in a file is ever run. Beyond the tensors the memory is a few chunks.
Layout and sizes are always checked, checksums where that is possible: sha256 always, xxh3_128 (the default of
jsonckpt) with the package xxhash, blake3 with blake3. A warning says when they are not. Compressed checkpoints need
Python 3.14 or the package zstandard, NumPy values NumPy. A registered type comes back as `Registered(name, value)`.
"""
from __future__ import annotations
import argparse, array, base64, collections, contextlib, ctypes, datetime, decimal, fnmatch, fractions, functools
import importlib, io, json, math, os, pathlib, random, re, struct, sys, types, uuid, warnings, zoneinfo
from typing import Any
import torch

MODULES = {"sha256": "hashlib", "xxh3_128": "xxhash", "blake3": "blake3"}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
PARTS = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
NAN = {"float64": 0x7FF8 << 48, "float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0,
       "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E, "float8_e8m0fnu": 0xFF}  # of the others: 0x80
LARGEST = 64 << 20  # bytes of a file without the payloads of its chunks
OMIT: Any = object()  # stands for a tensor that `include` leaves out
Registered = collections.namedtuple("Registered", "name value")

class CheckpointError(ValueError):
    """The checkpoint is damaged, or needs something that is missing here."""
def need(condition: object, message: str) -> bool:
    if not condition: raise CheckpointError(message)
    return True

# --- texts and chunks ---
def parse(text: bytes) -> Any:
    def unique(pairs: Any) -> Any:
        return need(len(dict(pairs)) == len(pairs), "a name is twice in one object") and dict(pairs)
    def real(token: str) -> Any:
        return need(math.isfinite(float(token)), f"{token} is not a number") and float(token)
    hooks: Any = {"object_pairs_hook": unique, "parse_float": real, "parse_constant": real}
    return json.loads(text.decode("utf-8"), parse_int=lambda s: -0.0 if s == "-0" else int(s), **hooks)
def known(found: Any) -> bool:
    return {*found.get("requires", ())} <= {"regions"}
def document(text: Any, kind: str) -> Any:
    found = parse(text)
    need(isinstance(found, dict) and found.get("format") == kind, "this is no jsonckpt checkpoint")
    need(found["version"] == 1 and known(found), "this needs a newer reader")
    return found

def unzstd(file: Any) -> Any:
    """The content of a file of zstd frames, by whichever module is here."""
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if name != "zstandard": return module.ZstdFile(file)
            frames = module.ZstdDecompressor(max_window_size=LARGEST)
            return io.BufferedReader(frames.stream_reader(file, read_across_frames=True))
    raise CheckpointError("this is compressed, and no zstd is here: pip install zstandard")

def from_numbers(values: list[Any], dtype: str) -> Any:
    """The raw bytes of a list, as a tensor. Numbers that are not finite are strings in it."""
    real, size = PARTS.get(dtype, dtype), size_of(PARTS.get(dtype, dtype))
    if "float" not in real:
        codes = "bhiq" if re.fullmatch("int(8|16|32|64)", dtype) else "BHIQ"
        return torch.frombuffer(array.array(codes[size.bit_length() - 1], values), dtype=torch.uint8)
    if real == "float4_e2m1fn_x2":
        nibbles = [[0, 0.5, 1, 1.5, 2, 3, 4, 6].index(abs(v)) | 8 * (math.copysign(1, v) < 0) for v in values]
        return torch.tensor(nibbles[0::2]) | torch.tensor(nibbles[1::2]) << 4
    words = [(i, v) for i, v in enumerate(values) if type(v) is str] if str in map(type, values) else []
    for i, word in words: values[i] = 1.0 if word[:2] == "0x" else float(word)
    wide = torch.frombuffer(array.array("d", values), dtype=torch.float64)
    near = wide if real == "float64" else wide.to(torch.float32).to(getattr(torch, real))
    need(torch.equal(near.double().isfinite(), wide.isfinite()), f"a number is too large for {real}")
    raw = near.view(torch.uint8)
    if real == "float8_e8m0fnu":  # the nearest power of two, of two that are equally near the even one
        part, power = torch.frexp(wide)
        raw = power + 126 + ((part > 0.75) | (part == 0.75) & (power % 2 == 1))
    for i, word in words:
        if word == "NaN" or word[:2] == "0x":
            bits = NAN.get(real, 0x80) if word == "NaN" else int(word, 16)
            raw[i * size:(i + 1) * size] = torch.tensor([*bits.to_bytes(size, "little")])
    return raw

def decode(payload: Any, record: dict[str, Any], target: torch.Tensor) -> None:
    """Writes the raw bytes of a chunk to a tensor of bytes."""
    codec, size = (record["encoding"], record["compression"], record["filter"]), target.numel()
    if codec == ("list", "none", "none"):
        values = payload if isinstance(payload, list) else parse(b"[" + payload + b"]")
        raw = from_numbers(values, record["dtype"])
    else:
        need(codec[0] == "base64" and codec[1] in ("none", "zstd"), f"unknown encoding: {codec}")
        data = of_base64(payload) if codec[1] == "none" else unzstd(io.BytesIO(of_base64(payload))).read(size + 1)
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    need(raw.numel() == size, f"a chunk has {raw.numel()} bytes, not {size}")
    need(record["dtype"] != "bool" or (raw < 2).all(), "a bool is neither 0 nor 1")
    target.copy_(raw.view(size_of(record["dtype"]), -1).t().flatten() if codec[2] == "shuffle" else raw)

def strided(memory: Any, kind: torch.dtype, shape: Any, stride: Any, at: int, end: int) -> Any:
    """A tensor on a tensor of bytes: from byte `at`, not beyond byte `end`."""
    empty = torch.empty(0, dtype=torch.uint8, device=memory.device).view(kind)
    size, last = empty.element_size(), sum((n - 1) * step for n, step in zip(shape, stride))
    inside = (0 in shape or at + (last + 1) * size <= end) and min([at, *shape, *stride]) >= 0
    need(inside and at % size == 0, "a tensor leaves its bytes")
    return empty.set_(memory.untyped_storage(), at // size, shape, stride)

# --- tags: how a Python value is made of what is in its tag ---
def of_torch(kind: Any, name: str) -> Any:
    return need(isinstance(getattr(torch, name, None), kind), f"this torch has no {name}") and getattr(torch, name)
def size_of(dtype: str) -> int:
    return torch.empty(0, dtype=torch.uint8).view(of_torch(torch.dtype, dtype)).element_size()
def pairs(items: Any) -> list[Any]:
    return [*items.items()] if isinstance(items, dict) else [pair for pair in items if len(pair) == 2]
def float64s(*values: Any) -> Any:
    return struct.unpack(f"<{len(values)}d", bytes(from_numbers([*values], "float64").tolist()))

def sparse(s: Any) -> Any:
    checked: Any = {"size": s["shape"], "check_invariants": True}
    if s["layout"] == "coo":
        return torch.sparse_coo_tensor(s["indices"], s["values"], **checked)._coalesced_(s["coalesced"])
    layout = of_torch(torch.layout, f"sparse_{s['layout']}")
    return torch.sparse_compressed_tensor(s["compressed"], s["plain"], s["values"], layout=layout, **checked)
def quantized(q: Any) -> Any:
    make = getattr(torch, f"_make_per_{'channel' if 'axis' in q else 'tensor'}_quantized_tensor")
    return make(*[q[key] for key in ("data", "scale", "zero_point", "axis") if key in q])
def ordered_dict(d: Any) -> Any:
    result: Any = collections.OrderedDict(pairs(d["items"]))
    result.__dict__.update({"_metadata": d["metadata"]} if "metadata" in d else {})
    return result
def moment(kind: Any, value: Any) -> Any:
    facts = {"iso": value} if isinstance(value, str) else value
    zone = {"tzinfo": zoneinfo.ZoneInfo(facts["zone"])} if "zone" in facts else {}
    return kind.fromisoformat(facts["iso"].replace("Z", "+00:00")).replace(fold=facts.get("fold", 0), **zone)

def ndarray(a: Any) -> Any:
    kind, data = numpy().dtype(a["dtype"]), a["data"]
    if isinstance(data, list):
        data = numpy().array(data, kind).reshape(a["shape"])
    else:
        data = data.cpu().numpy().view(kind.newbyteorder("<"))
        data = data.byteswap().view(kind) if kind.str[0] == ">" else data
    need([*data.shape] == a["shape"] and kind.kind != "O", "an array has another shape or type than its tensor")
    return numpy().asfortranarray(data) if a.get("order") == "F" else data
def scalar(s: Any) -> Any:
    kind, value = numpy().dtype(s["dtype"]), s["value"]
    if kind.kind in "US": return kind.type(value)
    if kind.kind not in "fc": return numpy().array([value], "<i8" if kind.kind in "mM" else kind).view(kind)[0]
    parts = [*value] if kind.kind == "c" else [value]
    raw = from_numbers(parts, f"float{8 * kind.itemsize // len(parts)}")
    return numpy().frombuffer(bytes(raw.tolist()), kind)[0]

numpy = functools.partial(importlib.import_module, "numpy")
of_base64 = functools.partial(base64.b64decode, validate=True)
KINDS: Any = (int, float, complex, bool, str, bytes, list, dict, set, tuple, frozenset)
KINDS = {kind.__name__: kind for kind in (*KINDS, collections.OrderedDict, collections.deque)}
CONTAINERS: dict[str, Any] = {
    "$tuple": tuple, "$set": set, "$frozenset": frozenset, "$dict": lambda i: dict(pairs(i)),
    "$counter": lambda i: collections.Counter(dict(pairs(i))), "$ordered_dict": ordered_dict,
    "$defaultdict": lambda d: collections.defaultdict(KINDS.get(d["factory"]), pairs(d["items"])),
    "$namespace": lambda i: argparse.Namespace(**dict(pairs(i))),
    "$simple_namespace": lambda i: types.SimpleNamespace(**dict(pairs(i))),
    "$deque": lambda d: collections.deque(d["items"], d["maxlen"])}
VALUES: dict[str, Any] = {
    "$parameter": lambda p: torch.nn.Parameter(p["data"], p["requires_grad"]), "$sparse": sparse,
    "$requires_grad": lambda t: t.detach().requires_grad_(), "$quantized": quantized, "$size": torch.Size,
    "$dtype": lambda s: of_torch(torch.dtype, s), "$layout": lambda s: of_torch(torch.layout, s),
    "$memory_format": lambda s: of_torch(torch.memory_format, s), "$device": torch.device, "$ndarray": ndarray,
    "$torch_version": torch.torch_version.TorchVersion, "$numpy_dtype": lambda s: numpy().dtype(s), "$scalar": scalar,
    "$int": lambda s: int(s, 16), "$float": lambda s: float64s(s)[0], "$complex": lambda p: complex(*float64s(*p)),
    "$bytes": of_base64, "$bytearray": lambda s: bytearray(of_base64(s)), "$ellipsis": lambda _: ...,
    "$str": lambda s: of_base64(s).decode("utf-8", "surrogatepass"), "$range": lambda p: range(*p), "$uuid": uuid.UUID,
    "$slice": lambda p: slice(*p), "$decimal": decimal.Decimal, "$fraction": lambda p: fractions.Fraction(*p),
    "$path": pathlib.Path, "$zone": zoneinfo.ZoneInfo, "$pure_path": lambda p:
        {"posix": pathlib.PurePosixPath, "windows": pathlib.PureWindowsPath}[p["flavour"]](p["path"]),
    "$date": datetime.date.fromisoformat, "$datetime": lambda v: moment(datetime.datetime, v),
    "$time": lambda v: moment(datetime.time, v), "$timedelta": lambda p: datetime.timedelta(*p),
    "$timezone": lambda p: datetime.timezone(datetime.timedelta(*p))}

# --- checkpoints ---
def payloads(lines: Any, text: bytearray) -> Any:
    """The payloads of a record, and at last its other members. `text` gets all but the payloads."""
    for line in lines:
        end = len(line) - 2 - line.endswith(b",\n")
        if line[:1] + line[end:end + 1] not in (b'""', b"[]"):
            text += line
            return (yield parse(b'{"chunks":[' + line.rstrip(b",\n")))
        text += line[:1] + line[end:]
        yield line[1:end]

class Reader:
    """Reads one checkpoint. `place` is where it is reading, for messages."""
    def __init__(self, path: Any, verify: bool, wanted: Any) -> None:
        self.path, self.verify, self.wanted, self.room, self.lost = os.fspath(path), verify, wanted, 1 << 30, 0
        self.place, self.records, self.memory = self.path, {}, {}  # type: str, dict[str, Any], dict[Any, Any]
    def check(self, seal: str, data: Any, what: str) -> None:
        algorithm, _, expected = seal.partition(":")
        try:
            hasher = getattr(importlib.import_module(MODULES[algorithm]), algorithm)
            need(not self.verify or hasher(data).hexdigest() == expected, f"{what} is damaged: its checksum differs")
        except ImportError as error:
            if self.verify: warnings.warn(f"{algorithm} checksums are not compared: {error}", stacklevel=1)  # shown once

    def read(self) -> Any:
        """The state as JSON. After this the bytes of the tensors are in `memory`."""
        if not os.path.isdir(self.path):
            found = self.read_file(self.path)
            return need("state" in found, "this is a shard of a checkpoint: read its directory") and found["state"]
        self.place = os.path.join(self.path, "manifest.json")
        with open(self.place, "rb") as file: manifest = document(text := file.read(LARGEST), "jsonckpt.manifest")
        if manifest["seal"] is not None:
            self.check(manifest["seal"], text[:text.rindex(b',\n"seal":')], "the manifest")
        for shard in manifest["shards"]:
            need(re.fullmatch(r"shard-[0-9a-z-]{1,100}\.json(\.zst)?", shard["file"]), "a shard has a wrong name")
            found = self.read_file(os.path.join(self.path, shard["file"]))
            need(found["seal"] == shard["seal"] and found["save_id"] == manifest["save_id"], "it is of another save")
        need([*self.records] == [entry["name"] for entry in manifest["tensors"]], "the manifest has other tensors")
        return manifest["state"]

    def read_file(self, path: str) -> Any:
        """Reads a file of records line by line. Returns all of it but the payloads."""
        text, before, self.place = bytearray(), len(self.records), path
        with open(path, "rb", buffering=1 << 20) as raw:
            self.room += 1000 * os.path.getsize(path)
            file: Any = unzstd(raw) if path.endswith(".zst") else raw
            for line in (lines := iter(lambda: file.readline(12 * LARGEST), b"")):
                text += line
                need(len(text) <= LARGEST, "its text is too long, or another program wrote it again")
                if line.endswith(b'"chunks":[\n'): self.take(parse(line + b"]}"), payloads(lines, text), path)
        self.place, found = path, document(text, "jsonckpt.shard")
        if found["seal"] is not None:
            self.check(found["seal"], text[:text.rindex(b',"seal":')], "the file")
        elif before == len(self.records):  # a JSON tool edited it and wrote it again
            for record in found["tensors"]: self.take(record, iter([*record["chunks"], record]), path)
        need(len(self.records) == before + len(found["tensors"]), "its lines are not those of a writer")
        return found

    def take(self, record: dict[str, Any], given: Any, path: str) -> None:
        """Reads a tensor: its payloads, then its checksums."""
        name, dtype, shape, step = (record[key] for key in ("name", "dtype", "shape", "chunk_bytes"))
        self.place, nbytes = f"{path}: tensor {name}", math.prod(shape) * size_of(dtype)
        need(name not in self.records and known(record), "it is there twice, or newer")
        key, at, whole = record.get("storage") or (name, 0, nbytes)
        self.room -= 0 if key in self.memory else whole
        need(0 <= at <= at + nbytes <= whole and self.room >= 0, "it claims more bytes than there can be")
        place = re.sub(r"^\$region/[\d,]*", "", name)
        wanted = self.wanted is None or name.startswith("$storage/") or self.wanted(place)
        rows = [*torch.empty(shape, device="meta").stride()]
        self.records[name] = {"stride": rows, **record, "key": key, "at": at, "end": at + nbytes, "wanted": wanted}
        if wanted and key not in self.memory: self.memory[key] = torch.zeros(whole, dtype=torch.uint8)
        memory = self.memory[key][at:at + nbytes] if wanted else torch.empty(0)
        for start in range(0, nbytes, step):
            need(not isinstance(payload := next(given), dict), "it has too few chunks")
            if wanted: decode(payload, record, memory[start:start + step])
        need(isinstance(tail := next(given), dict), "it has too many chunks")
        [algorithm] = tail.keys() & MODULES.keys()
        need(len(tail[algorithm]) == -(-nbytes // step), "it has another number of checksums")
        facts = [name, dtype, ",".join(map(str, shape)), record.get("device", "cpu")]
        facts += [record[key] for key in ("encoding", "compression", "filter", "chunk_bytes")] + tail[algorithm]
        self.check(f"{algorithm}:{tail['digest']}", "".join(f"{fact}\n" for fact in facts).encode(), "its description")
        if not wanted or not nbytes: return
        for chunk, expected in zip(memory.split(step), tail[algorithm]):
            self.check(f"{algorithm}:{expected}", ctypes.string_at(chunk.data_ptr(), chunk.numel()), "a chunk")
        if (stride := record.get("stride", rows)) != rows:
            plain = strided(memory.clone(), BITS[size_of(dtype)], shape, rows, 0, nbytes)
            strided(memory, plain.dtype, shape, stride, at, at + nbytes).copy_(plain)

    def join(self, node: Any) -> Any:
        """Puts together each tensor of the state that is in several records. Returns the state."""
        for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else (): self.join(part)
        if not isinstance(node, dict) or [*node] != ["$regions"]: return node
        name, dtype, shape = (node["$regions"][key] for key in ("name", "dtype", "shape"))
        self.place, size, parts = f"{self.path}: tensor {name}", size_of(dtype), node["$regions"]["parts"]
        if self.records.get(name, {}).get("said") == node: return node
        offsets, numbers = [part["offset"] for part in parts], collections.defaultdict(lambda: random.getrandbits(120))
        names = [f"$region/{','.join(map(str, offset))}{name}" for offset in offsets]
        need([part["of"] for part in parts] == names, "a region has another name")
        found, nbytes = [self.records.pop(region) for region in names], math.prod(shape) * size
        boxes = [*zip(offsets, (one["shape"] for one in found)), ([0] * len(shape), shape)]
        sums = [math.prod(numbers[i, a] - numbers[i, a + n] for i, (a, n) in enumerate(zip(*box))) for box in boxes]
        fits = all(one["dtype"] == dtype and len(one["shape"]) == len(shape) for one in found)
        need(fits and sum(sums[:-1]) == sums[-1] and name not in self.records, "its regions do not fit together")
        wanted, rows = self.wanted is None or self.wanted(name), [*torch.empty(shape, device="meta").stride()]
        memory = torch.empty(nbytes if wanted else 0, dtype=torch.uint8)
        for (offset, lengths), one in zip(boxes, found) if wanted else ():
            whole, raw = memory.view(*shape, size), self.memory.pop(one["key"])
            for i, (start, length) in enumerate(zip(offset, lengths)): whole = whole.narrow(i, start, length)
            whole.copy_(raw.view(*lengths, size))
        facts = {"name": name, "dtype": dtype, "shape": shape, "stride": rows, "key": name, "at": 0, "end": nbytes}
        self.records[name], self.memory[name] = {**facts, "wanted": wanted, "said": node}, memory
        return node

    def value(self, node: Any) -> Any:
        """The Python value of a part of the state."""
        if isinstance(node, list): return [value for value in map(self.value, node) if value is not OMIT]
        if not isinstance(node, dict): return node
        tag, body = next(iter(node.items()), ("", OMIT))
        if len(node) != 1 or tag[:1] != "$":
            return {key: value for key, member in node.items() if (value := self.value(member)) is not OMIT}
        if tag in ("$tensor", "$tied", "$view", "$regions"):
            record = self.records[body if tag == "$tensor" else body["name" if tag == "$regions" else "of"]]
            wanted = record["wanted"] and (tag != "$view" or self.wanted is None or self.wanted(body["name"]))
            self.lost += not wanted
            said, at = (body, size_of(body["dtype"]) * body["offset"]) if tag == "$view" else (record, 0)
            place = of_torch(torch.dtype, said["dtype"]), said["shape"], said["stride"], at + record["at"], record["end"]
            return strided(self.memory[record["key"]], *place) if wanted else OMIT
        before, body, make = self.lost, self.value(body), CONTAINERS.get(tag) or VALUES.get(tag)
        if tag not in CONTAINERS and self.lost > before: return OMIT  # it cannot be made without its tensor
        return make(body) if make else Registered(tag[1:], body)

def load(path: Any, map_location: Any = "cpu", verify: bool = True, include: Any = None) -> Any:
    """The state, on the device `map_location`. `include`: a glob or globs ("/model/*") or a function, for names."""
    def wanted(name: str) -> bool:
        globs = [include] if isinstance(include, str) else include
        return any(fnmatch.fnmatchcase(name.lstrip("/"), glob.lstrip("/")) for glob in globs)
    reader = Reader(path, verify, include if include is None or callable(include) else wanted)
    try:
        state = reader.join(reader.read())
        for key, memory in reader.memory.items(): reader.memory[key] = memory.to(map_location)
        return (reader.value([state]) or [None])[0]
    except (OSError, MemoryError): raise
    except Exception as error:  # of json, torch, zstd, …: the content is wrong
        kind = "" if isinstance(error, CheckpointError) else f"{type(error).__name__}: "
        raise CheckpointError(f"{reader.place}: {kind}{error}") from error

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        listed = Reader(argument, True, lambda _: False)
        listed.join(listed.read())
        for name, r in listed.records.items(): print(name, r["dtype"], r["shape"], f"{r['end'] - r['at']:,} bytes")
