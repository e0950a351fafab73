"""Makes mutants of a good checkpoint from numbers: bytes, tokens, and structure.

Byte mutants change a finished file. Token mutants change the text of a manifest, a record, a state
or a payload, and structure mutants its members; both are forged: every checksum, range and seal
fits, so that the fault reaches the intended check.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import random
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.cases import write
from tests.hostile.forge import Forgery, Raw, Record, dumps, good, zstd
from tools.reliability.common import memory_directory
from tools.reliability.mutations import MUTATIONS, VALUES, changed_bytes

FORMS = ("directory", "single", "zst", "directory_zst")
#: A checkpoint's files by name: one, or those of a directory.
Files = dict[str, bytes]

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[a-zA-Z$_]+|[^\sa-zA-Z0-9]|\s+')
#: Texts on which parsers are known to disagree.
TOKENS = [
    b"{}", b"[]", b"null", b"true", b"false", b"0", b"-0", b"-0.0", b"1e5", b"1E400", b"-1", b"1.",
    b"01", b"+1", b".5", b"NaN", b"Infinity", b"-Infinity", b'""', b'"NaN"', b'"0x7fc00001"',
    b'"\\u0000"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\xff"', b"\xef\xbb\xbf", b"\0", b"\x0c",
    b"\r", b"\n", b"\t", b" ", b"\xc2\xa0", b",", b":", b"[", b"]", b"{", b"}", b'"', b"'", b"//x",
    b"9" * 20, b"9" * 400, b"1" * 4400, b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"0.1" + b"0" * 30, b"5e-324", b"1e-400", b'{"$tensor":"/w"}',
    b'{"$tensor":"/nowhere"}', b'{"$":1}', b'{"$tuple":[]}', b'"requires":["x"]', b'"state":',
    b'"tensors":[\n', b'"chunks":[\n', b'"seal":null', b'"index":[', b"[" * 250, b"AAAA", b"====",
]  # fmt: skip

TAGS = [
    "tensor", "tied", "view", "parameter", "requires_grad", "sparse", "quantized", "tuple", "set",
    "frozenset", "dict", "ordered_dict", "defaultdict", "counter", "deque", "int", "float",
    "complex", "str", "bytes", "bytearray", "range", "slice", "ellipsis", "path", "pure_path",
    "datetime", "date", "time", "timedelta", "timezone", "zone", "decimal", "fraction", "uuid",
    "namespace", "simple_namespace", "ndarray", "scalar", "numpy_dtype", "dtype", "device", "size",
    "layout", "memory_format", "torch_version", "no_such_tag",
]  # fmt: skip
MEMBERS = [
    "name", "of", "dtype", "shape", "stride", "offset", "data", "requires_grad", "layout",
    "indices", "values", "coalesced", "scheme", "scale", "zero_point", "axis", "items", "metadata",
    "factory", "maxlen", "iso", "zone", "fold", "flavour", "path", "order", "value", "compressed",
    "plain",
]  # fmt: skip
ODD_LEAVES: list[Any] = [
    *VALUES, "/w", "/i", "/mask", "<f4", "|b1", "|S4", "<U2", "<M8[ns]", "coo", "csr", "strided",
    "quint8", "per_tensor_affine", "posix", "2020-01-01", "2020-01-01T00:00:00Z", "12:00:00",
    "Europe/Berlin", "../../etc/passwd", "1.5", "NaN", "Infinity", "0x7ff8000000000001",
    "0x" + "f" * 300,
    "-0x1", "QQ==", "QR==", "1E+1000000", "1E+999999999", "sNaN", "int", "list", "OrderedDict",
    [0, 1, 2], [0, 10**9, 1], [1, 0], [0, 0, 0], {"$tensor": "/i"}, {"$tensor": "/mask"}, 10**30,
    {"$int": "0x10"}, {"$float": "NaN"}, {"$bytes": "QUJD"}, "torch.float32", "xla", "cuda:99",
    "mps", "meta", "12345678-1234-5678-1234-567812345678", [[1, 2], [3, 4]], [["a", 1], ["a", 2]],
]  # fmt: skip


def shaken(chance: random.Random, text: bytes) -> bytes:
    """A text with a few of its tokens changed, removed, doubled or swapped."""
    tokens = _TOKEN.findall(text)
    if not tokens:
        return chance.choice(TOKENS)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(len(tokens))
        kind = chance.randrange(6)
        if kind == 0:
            tokens[at] = chance.choice(TOKENS)
        elif kind == 1:
            tokens.insert(at, chance.choice(TOKENS))
        elif kind == 2 and len(tokens) > 1:
            del tokens[at]
        elif kind == 3:
            tokens[at] = chance.choice(tokens)
        elif kind == 4:
            other = chance.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        else:
            stop = min(len(tokens), at + chance.choice([1, 2, 5, 20]))
            tokens[stop:stop] = tokens[at:stop]
    return b"".join(tokens)


# --- forged ------------------------------------------------------------------------------------


def _value(chance: random.Random, depth: int = 0) -> Any:
    """A value for a state, with tags that are right, nearly right or wrong."""
    kind = chance.random()
    if kind < 0.4 or depth > 4:
        return chance.choice(ODD_LEAVES)
    if kind < 0.75:
        return {f"${chance.choice(TAGS)}": _value(chance, depth + 1)}
    if kind < 0.9:
        names = chance.sample(MEMBERS, chance.randrange(1, 5))
        return {name: _value(chance, depth + 1) for name in names}
    return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]


def _state(chance: random.Random, forgery: Forgery) -> None:
    state = forgery.single["state"]
    for _ in range(chance.choice([1, 1, 3])):
        if isinstance(state, dict):
            state[chance.choice([*state, "x", "$x", ""])] = _value(chance)


def _state_text(chance: random.Random, forgery: Forgery) -> None:
    name = chance.choice(["state", "state", "metadata", "created_at", "created_by", "totals"])
    if name == "totals":
        forgery.totals = chance.choice(VALUES)
    else:
        forgery.single[name] = Raw(shaken(chance, dumps(forgery.single[name])))


def _manifest_text(chance: random.Random, forgery: Forgery) -> None:
    forgery.edit_body = lambda body: shaken(chance, body)


def _record_text(chance: random.Random, forgery: Forgery) -> None:
    record = chance.choice(forgery.records)
    if chance.random() < 0.5:
        head = dumps(record.members)[:-1]
        record.head_line = shaken(chance, head) + b',"chunks":[\n'
    else:
        record.tail_line = shaken(chance, forgery._tail(record))


def _payload_text(chance: random.Random, forgery: Forgery) -> None:
    record = _with_payload(chance, forgery)
    number = chance.randrange(len(record.payloads))
    record.payloads[number] = shaken(chance, record.payloads[number])


def _frame(chance: random.Random, forgery: Forgery) -> None:
    """A zstd payload whose frame is changed and whose base64 is right."""
    record = forgery["/h"]
    number = chance.randrange(len(record.payloads))
    frame = base64.b64decode(record.payloads[number])
    if chance.random() < 0.3:
        size = chance.choice([0, 1, 31, 32, 33, 1 << 16])
        frame = zstd(bytes(size), write_checksum=chance.random() < 0.5)
    record.payloads[number] = base64.b64encode(changed_bytes(chance, frame))


def _other_bytes(chance: random.Random, forgery: Forgery) -> None:
    """Other data, correctly encoded. The checksum may fit or not."""
    record = _with_payload(chance, forgery)
    size = record.members.get("chunk_bytes")
    if not isinstance(size, int) or size <= 0 or record.members.get("encoding") == "list":
        return
    number = chance.randrange(len(record.payloads))
    raw = chance.randbytes(chance.choice([size, size, size - 1, size + 1]))
    record.payloads[number] = base64.b64encode(raw)


def _compressed_text(chance: random.Random, forgery: Forgery) -> None:
    """The frames of a compressed file."""

    def compress(text: bytes) -> bytes:
        cut = chance.randrange(len(text) + 1)
        options = {"write_checksum": chance.random() < 0.5, "level": chance.choice([1, 3, 19])}
        frames = [zstd(text[:cut], **options), zstd(text[cut:], **options)]
        if chance.random() < 0.3:
            other = chance.choice([zstd(b""), b"\x50\x2a\x4d\x18" + bytes(4)])
            frames.insert(chance.randrange(3), other)
        data = b"".join(frames)
        return changed_bytes(chance, data) if chance.random() < 0.5 else data

    forgery.compress = compress


def _with_payload(chance: random.Random, forgery: Forgery) -> Record:
    records = [record for record in forgery.records if record.payloads]
    return chance.choice(records or [good()["/w"]])


_FORGED: list[Callable[[random.Random, Forgery], Any]] = [
    *MUTATIONS, _state, _state, _state_text, _manifest_text, _manifest_text, _record_text,
    _payload_text, _frame, _other_bytes, _compressed_text,
]  # fmt: skip
#: Errors of the forger itself on a mutation.
_UNTOLD = (
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
    OverflowError,
    StopIteration,
)


def _forged(chance: random.Random, form: str) -> Files | None:
    forgery = good("sha256" if chance.random() < 0.05 else "xxh3_128")
    with contextlib.suppress(*_UNTOLD):
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            chance.choice(_FORGED)(chance, forgery)
        return written(forgery, form)
    return None


def written(forgery: Forgery, form: str) -> Files:
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        path = write(forgery, form, Path(directory))
        if path.is_file():
            return {path.name: path.read_bytes()}
        return {file.name: file.read_bytes() for file in path.iterdir()}


@functools.cache
def _good(form: str) -> Files:
    return written(good(), form)


# --- all kinds -----------------------------------------------------------------------------------


def forms_of(number: int) -> str:
    """The form of a mutant. The forms take turns."""
    return FORMS[number % len(FORMS)]


def mutant(seed: int, number: int) -> tuple[str, Files] | None:
    """The files of mutant ``number``, or None if the forger cannot write it."""
    chance = random.Random(f"{seed}:{number}")
    form = forms_of(number)
    kind = chance.random()
    if kind < 0.65:
        files = _forged(chance, form)
        return None if files is None else (form, files)
    files = dict(_good(form))
    name = chance.choice(sorted(files))
    if kind < 0.85:
        files[name] = changed_bytes(chance, files[name])
    elif kind < 0.95:
        files[name] = shaken(chance, files[name])
    else:  # a piece of another file
        other = chance.choice([*files.values(), *_good("single").values()])
        at, start = chance.randrange(len(files[name])), chance.randrange(len(other))
        size = chance.choice([4, 40, 400])
        files[name] = files[name][:at] + other[start : start + size] + files[name][at + size :]
    return form, files


def put(files: Files, form: str, directory: Path) -> Path:
    """Write a mutant, and replace what is at its path."""
    if not form.startswith("directory"):
        (name,) = files
        path = directory / name
        path.write_bytes(files[name])
        return path
    path = directory / "run"
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path
