"""Hostile pickles: each is refused, in little time and memory, and nothing in it runs."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jsonckpt import JsonckptError, LimitError, Limits
from jsonckpt._src.pickles.python_types import BUILDERS, CONSTRUCTORS
from jsonckpt._src.pickles.vocabulary import VOCABULARY
from tests.pickles.support import loaded

TRAP = "trap-was-sprung"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def called(name: str, *args: bytes) -> bytes:
    """A call of a name, such as ``os.system``."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(args) + b"tR"


COMMAND = text(f"touch {TRAP}")
PROGRAM = text(f"open({TRAP!r}, 'w')")
SHAPE = b"K\x02\x85"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"


def tensor(
    offset: bytes, size: bytes, stride: bytes, function: str = "_rebuild_tensor_v2"
) -> bytes:
    return called(f"torch._utils.{function}", STORAGE, offset, size, stride, b"\x89", b"N")


#: They would run code in Python's own unpickler.
CODE: dict[str, bytes] = {
    "reduce os.system": called("os.system", COMMAND),
    "reduce posix.system": called("posix.system", COMMAND),
    "reduce nt.system": called("nt.system", COMMAND),
    "reduce eval": called("builtins.eval", PROGRAM),
    "reduce exec of Python 2": called("__builtin__.exec", PROGRAM),
    "reduce open": called("builtins.open", text(TRAP), text("w")),
    "reduce io.open": called("io.open", text(TRAP), text("w")),
    "reduce pathlib touch": called("pathlib.Path.touch", called("pathlib.Path", text(TRAP))),
    "reduce subprocess": called("subprocess.Popen", COMMAND, b"J\xff\xff\xff\xffNNNNN\x88\x88"),
    "reduce import": called("builtins.__import__", text("antigravity")),
    "reduce importlib": called("importlib.import_module", text("antigravity")),
    "reduce getattr": called("builtins.getattr", b"cos\nsystem\n", text("__call__"))
    + b"("
    + COMMAND
    + b"tR",
    "reduce attrgetter": called("operator.attrgetter", text("system")) + b"(cos\nsystem\ntR",
    "reduce methodcaller": called("operator.methodcaller", text("touch")),
    "reduce partial": called("functools.partial", b"cos\nsystem\n", COMMAND) + b")R",
    "reduce map": called("builtins.map", b"cos\nsystem\n", b"(" + COMMAND + b"l"),
    "reduce type": called("builtins.type", text("X"), b")", b"}"),
    "reduce torch.load": called("torch.load", text("x.pt")),
    "reduce torch.hub": called("torch.hub.load", text("a/b"), text("c")),
    "reduce pickle.loads": called("pickle.loads", b"C\x02N."),
    "reduce numpy load": called("numpy.load", text("x.npy")),
    "reduce codecs eval": called("_codecs.lookup", text("x")),
    "reduce pdb": called("pdb.run", PROGRAM),
    "reduce timeit": called("timeit.timeit", PROGRAM),
    "reduce runpy": called("runpy.run_path", text("x.py")),
    "reduce jit": called("torch.jit.load", text("x.pt")),
    "reduce cpp": called("torch.utils.cpp_extension.load", text("x")),
    "reduce dotted": b"\x80\x04"
    + text("torch")
    + text("serialization.os.system")
    + b"\x93"
    + COMMAND
    + b"\x85R",
    "reduce dunder": b"\x80\x04" + text("builtins") + text("object.__subclasses__") + b"\x93)R",
    "reduce a result": called("collections.OrderedDict") + COMMAND + b"\x85R",
    "newobj": b"\x80\x02csubprocess\nPopen\n" + COMMAND + b"\x85\x81",
    "newobj_ex": b"\x80\x04csubprocess\nPopen\n)}" + text("args") + COMMAND + b"s\x92",
    "newobj by copyreg": called("copyreg.__newobj__", b"csubprocess\nPopen\n", COMMAND),
    "reconstructor": called(
        "copyreg._reconstructor", b"csubprocess\nPopen\n", b"cbuiltins\nobject\n", b"N"
    ),
    "inst": b"(" + COMMAND + b"ios\nsystem\n",
    "obj": b"(cos\nsystem\n" + COMMAND + b"o",
    "setstate": b"\x80\x02ctorch.nn.modules.module\nModule\n)\x81}"
    + text("__setstate__")
    + b"cos\nsystem\nsb",
    "build on a name": b"cos\nsystem\n}" + text("__code__") + b"Nsb",
    "build on a class": b"ccollections\nOrderedDict\n}" + text("__init__") + b"cos\nsystem\nsb",
    "slots on a class": b"\x80\x02ccollections\nOrderedDict\nN}" + text("__reduce__") + b"Ns\x86b",
    "default factory": called("collections.defaultdict", b"cos\nsystem\n") + text("a") + b"K\x01s",
    "factory by build": called("collections.defaultdict", b"N")
    + b"}"
    + text("default_factory")
    + b"cos\nsystem\nsb",
    "tensor type": called(
        "torch._tensor._rebuild_from_type_v2",
        b"cos\nsystem\n",
        b"ctorch\nTensor\n",
        COMMAND + b"\x85",
        b"}",
    ),
    "tensor hooks": called("torch._utils._rebuild_parameter", b"cos\nsystem\n", b"\x88", b"}"),
    "persistent class": b"(X\x06\0\0\0moduleccos\nsystem\ntQ",
    "ext1": b"\x80\x02\x82\x01",
    "ext2": b"\x80\x02\x83\x01\0",
    "ext4": b"\x80\x02\x84\x01\0\0\0",
    "next buffer": b"\x80\x05\x97",
    "nested pickle": called(
        "torch.storage._load_from_bytes",
        b"C" + bytes([len(called("os.system", COMMAND)) + 1]) + called("os.system", COMMAND) + b".",
    ),
}

HUGE = b"\x8a\x08\0\0\0\0\0\0\0\x10"
#: They would take all memory or time, or reach beyond what they hold.
GREEDY: dict[str, bytes] = {
    "bytearray of a number": called("builtins.bytearray", HUGE),
    "bytes of a number": called("builtins.bytes", HUGE),
    "list of a range": called("builtins.list", called("builtins.range", HUGE)),
    "set of a range": called("builtins.set", called("builtins.range", HUGE)),
    "counter of a range": called("collections.Counter", called("builtins.range", HUGE)),
    "fraction of an exponent": called("fractions.Fraction", text("1e999999999")),
    "fraction of a decimal": called(
        "fractions.Fraction", called("decimal.Decimal", text("1e999999999"))
    ),
    "digits": b"L" + b"9" * 10**6 + b"L\n",
    "binary integer": b"\x80\x02\x8b" + struct.pack("<i", 10**5) + b"\x01" * 10**5,
    "integer of a negative size": b"\x80\x02\x8b\xff\xff\xff\xff",
    "text of a huge size": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"a",
    "bytes of a huge size": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"a",
    "bytearray of a huge size": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"a",
    "string of a negative size": b"T\xff\xff\xff\xff",
    "doubling lists": b"]q\0"
    + b"".join(
        b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(150)
    ),
    "doubling tuples": b")q\0"
    + b"".join(
        b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(150)
    ),
    "doubling sets": b"(\x91\x94"
    + b"".join(b"(h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x91\x94" for n in range(150)),
    "a long text many times": b"(" + text("a" * 10**6) + b"q\0" + b"h\0" * 10**5 + b"l",
    "a list in itself": b"]q\0h\0a",
    "a dictionary in itself": b"}q\0K\x01h\0s",
    "deep lists": b"]" * 10**5 + b"a" * (10**5 - 1),
    "deep tuples": b")" + b"\x85" * 10**5,
    "deep keys": b"})" + b"\x85" * 10**5 + b"K\x01s",
    "deep elements": b"(K\x01" + b"\x85" * 10**5 + b"\x91",
    "equal hashes": b"}("
    + b"".join(
        b"\x8a\x10" + (((1 << 61) - 1) * n).to_bytes(16, "little") + b"N" for n in range(1, 10**4)
    )
    + b"u",
    "array of a huge shape": called(
        "numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", HUGE + b"\x85", b"C\x01b"
    )
    + b"(K\x01"
    + HUGE
    + b"\x85"
    + called("numpy.dtype", text("f8"))
    + b"(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89C\x01atb",
    "array that ends too early": called(
        "numpy.core.multiarray._reconstruct", b"cnumpy\nndarray\n", SHAPE, b"C\x01b"
    )
    + b"(K\x01"
    + SHAPE
    + called("numpy.dtype", text("f8"))
    + b"(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89C\x01atb",
    "dtype of a huge item": called("numpy.dtype", text("V2000000000"))
    + b"(K\x03"
    + text("|")
    + b"NNNJ\0\0\0\x70K\x01K\0tb",
    "dtype of objects": called("numpy.dtype", text("O8"))
    + b"(K\x03"
    + text("|")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb",
    "dtype of another size": called("numpy.dtype", text("f8"))
    + b"(K\x03"
    + text("<")
    + b"NNNJ\0\0\0\x70K\x01K\0tb",
    "dtype of a text": called("numpy.dtype", text("f8,(1000000,1000000)f8"))
    + b"(K\x03"
    + text("<")
    + b"NNNNNK\0tb",
    "scalar of objects": called(
        "numpy.core.multiarray.scalar", called("numpy.dtype", text("O8")), b"C\x08aaaaaaaa"
    ),
    "tensor beyond its storage": tensor(b"K\0", b"K\x05\x85", b"K\x01\x85"),
    "tensor at an offset": tensor(b"K\x04", b"K\x01\x85", b"K\x01\x85"),
    "tensor before its storage": tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"),
    "tensor of a negative size": tensor(b"K\0", b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "tensor of a negative stride": tensor(b"K\x03", b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
    "tensor of huge strides": tensor(b"K\0", b"K\x02\x85", HUGE + b"\x85"),
    "tensor of other strides": tensor(b"K\0", b"K\x02\x85", b")"),
    "tensor of a text": called(
        "torch._utils._rebuild_tensor_v2", text("a"), b"K\0", SHAPE, SHAPE, b"\x89", b"N"
    ),
    "tensor of too many sizes": tensor(
        b"K\0", b"(" + b"K\x01" * 99 + b"t", b"(" + b"K\x01" * 99 + b"t"
    ),
    "storage of another kind": b"(X\x07\0\0\0storagecos\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\x04tQ",
    "storage that is not there": b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
    + text("1")
    + text("cpu")
    + b"K\x04tQ",
    "storage of a path": b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
    + text("../data/0")
    + text("cpu")
    + b"K\x04tQ",
    "storage that is too small": b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + HUGE
    + b"tQ",
    "storage of a negative size": b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"J\xff\xff\xff\xfftQ",
    "storage by itself": STORAGE,
    "sparse beyond its shape": called(
        "torch._utils._rebuild_sparse_tensor",
        called("torch.serialization._get_layout", text("torch.sparse_coo")),
        b"("
        + called(
            "torch._utils._rebuild_tensor_v3",
            STORAGE,
            b"K\0",
            b"K\x01K\x01\x86",
            b"K\x01K\x01\x86",
            b"\x89",
            b"N",
            b"ctorch\nint64\n",
        )
        + tensor(b"K\0", b"K\x01\x85", b"K\x01\x85")
        + b"K\x02\x85"
        + b"\x89t",
    ),
    "quantized and expanded": called(
        "torch._utils._rebuild_qtensor",
        b"(X\x07\0\0\0storagectorch\nQInt8Storage\n" + text("0") + text("cpu") + b"K\x10tQ",
        b"K\0",
        HUGE + b"\x85",
        b"K\0\x85",
        b"ctorch\nper_tensor_affine\nG?\xf0\0\0\0\0\0\0K\0\x87",
        b"\x89",
        b"N",
    ),
    "setitem on a tensor": tensor(b"K\0", b"K\x04\x85", b"K\x01\x85") + b"K\x00K\x01s",
    "setitems on a list": b"](K\x00K\x01u",
    "append to a dictionary": b"}K\x01a",
    "element for a list": b"](K\x01\x90",
    "date that is none": called("datetime.date", b"C\x04\x07\xe4\x02\x1f"),
    "time that is none": called("datetime.datetime", b"C\x0a\x07\xe4\x0d\x01\x19\0\0\0\0\0"),
    "attributes of a state dict": called("collections.OrderedDict") + b"}" + text("items") + b"Nsb",
    "empty stack": b"0.",
    "no mark": b"K\x01u",
    "no memo": b"h\x05",
    "unknown instruction": b"\xff",
    "protocol 9": b"\x80\x09N",
    "odd items": b"}(K\x01u",
    "not a text": b"X\x01\0\0\0\xff",
}


def memo(number: int) -> bytes:
    return b"h" + bytes([number])


def _one_hash(count: int) -> list[tuple[int, int]]:
    """Pairs of integers whose tuples all have the same hash in CPython."""
    first, second, start = 11400714785074694791, 14029467366897019727, 2870177450012600261
    whole, back, left = 1 << 64, pow(second, -1, 1 << 64), 0
    found: list[tuple[int, int]] = []
    while len(found) < count:
        left += 1
        lane = (start + left * second) % whole
        right = ((12345 - ((lane << 31) | (lane >> 33)) * first) * back) % whole
        right -= whole if right >= whole >> 1 else 0
        if abs(right) < (1 << 61) - 1 and right != -1:
            found.append((left, right))
    assert len(set(map(hash, found))) == 1
    return found


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def nested_sets(first: int) -> bytes:
    """Each set holds a pair of the one before: two equal ones take 2**34 steps to compare."""
    return (
        b"(K\x01\x91q"
        + bytes([first])
        + b"".join(
            b"(" + memo(n) * 2 + b"\x86\x91q" + bytes([n + 1]) for n in range(first, first + 34)
        )
    )


def wrapped(inner: bytes, before: bytes, after: bytes, times: int = 60) -> bytes:
    return before * times + inner + after * times


def expanded(function: str = "_rebuild_tensor_v2", rows: bytes = b"") -> bytes:
    """A tensor of 2**40 elements over four."""
    last = b"\x8a\x06\0\0\0\0\0\x01"
    size = rows + last + (b"\x86" if rows else b"\x85")
    return tensor(b"K\0", size, b"K\0K\0\x86" if rows else b"K\0\x85", function)


MILLION = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\0"
PAIRS = _one_hash(20_000)
#: Few bytes that are used again and again, or that are slow as keys.
GREEDY |= {
    "a key of doubling tuples": b")q\0"
    + b"".join(memo(n) * 2 + b"\x86q" + bytes([n + 1]) for n in range(31))
    + b"}h\x1fNs",
    "a wide key many times": b"(" + b"K\x01" * 10**5 + b"tq\0}(" + b"h\0N" * 10**4 + b"u",
    "pairs of one hash": b"}("
    + b"".join(integer(a) + integer(b) + b"\x86N" for a, b in PAIRS)
    + b"u",
    "pairs of one hash, one by one": b"}"
    + b"".join(integer(a) + integer(b) + b"\x86Ns" for a, b in PAIRS),
    "a set of one hash": b"("
    + b"".join(integer(a) + integer(b) + b"\x86" for a, b in PAIRS)
    + b"\x91",
    "decimals of one hash": b"("
    + b"".join(
        called("decimal.Decimal", text(str(((1 << 61) - 1) * n))) for n in range(1, 2 * 10**4)
    )
    + b"\x91",
    "equal nested sets": nested_sets(0) + nested_sets(100) + b"(" + memo(34) + memo(134) + b"\x91",
    "bytes again and again": MILLION + b"(" + called("_codecs.encode", b"h\0") * 2_000 + b"l",
    "a list again and again": b"("
    + b"N" * 10**6
    + b"lq\0("
    + called("builtins.list", b"h\0") * 2_000
    + b"l",
    "a path of many parts": MILLION + b"cpathlib\nPosixPath\n(" + b"h\0" * 10**4 + b"tR",
    "fractions again and again": b"".join(
        b"\x8b" + struct.pack("<i", 1700) + digit * 1700 + b"q" + place
        for digit, place in ((b"\x71", b"\0"), (b"\x13", b"\1"))
    )
    + b"cfractions\nFraction\nq\2("
    + b"h\2h\0h\1\x86R" * 10**5
    + b"l",
    "names of a long key": MILLION + b"(" + b")" * 10**4 + b"lq\1" + b"}h\0h\1sq\1" * 50,
    "a list in itself in a slice": b"]q\0" + called("builtins.slice", b"h\0") + b"a",
    "a list in itself at a tensor": called(
        "torch._tensor._rebuild_from_type_v2",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nTensor\n",
        b"(" + STORAGE + b"K\0K\x04\x85K\x01\x85\x89Nt",
        b"}" + text("a") + b"]q\0h\0as",
    ),
    "code at a tensor": called(
        "torch._tensor._rebuild_from_type_v2",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nTensor\n",
        b"(" + STORAGE + b"K\0K\x04\x85K\x01\x85\x89Nt",
        b"}" + text("a") + b"cos\nsystem\ns",
    ),
    "an expanded tensor": expanded(),
    "a copy of an expanded tensor": called(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        expanded(),
        b"ctorch\nfloat64\n",
        text("cpu"),
        b"\x89",
    ),
    "sparse with expanded indices": called(
        "torch._utils._rebuild_sparse_tensor",
        called("torch.serialization._get_layout", text("torch.sparse_coo")),
        b"("
        + called(
            "torch._utils._rebuild_tensor_v3",
            STORAGE,
            b"K\0",
            b"K\x01\x8a\x05\0\0\0\0\x04\x86",
            b"K\0K\0\x86",
            b"\x89",
            b"N",
            b"ctorch\nint64\n",
        )
        + tensor(b"K\0", b"\x8a\x05\0\0\0\0\x04\x85", b"K\0\x85")
        + b"K\x02\x85\x89t",
    ),
    "quantized with gaps": called(
        "torch._utils._rebuild_qtensor",
        b"(X\x07\0\0\0storagectorch\nQUInt4x2Storage\n" + text("0") + text("cpu") + b"K\x10tQ",
        b"K\0",
        b"K\x02\x85",
        b"\x8a\x05\0\0\0\0\x08\x85",
        b"ctorch\nper_tensor_affine\nG?\xf0\0\0\0\0\0\0K\0\x87",
        b"\x89",
        b"N",
    ),
    "quantized without a scale": called(
        "torch._utils._rebuild_tensor_v3",
        STORAGE,
        b"K\0",
        b"K\x01\x85",
        b"K\x01\x85",
        b"\x89",
        b"N",
        b"ctorch\nqint8\n",
    ),
}

HOSTILE = {**CODE, **GREEDY}


def archive(content: bytes) -> bytes:
    """A file of ``torch.save`` with one storage and this ``data.pkl``."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("archive/data.pkl", content)
        target.writestr("archive/data/0", b"\xff" * 16)
        target.writestr("archive/version", b"3\n")
    return file.getvalue()


def legacy(content: bytes) -> bytes:
    file = io.BytesIO()
    torch.save(None, file, _use_new_zipfile_serialization=False)
    head = file.getvalue().split(b"little_endian", 1)[0]
    start = file.getvalue().index(b"\x80\x02N.", len(head))
    keys = pickle.dumps(["0"] if b"storage" in content else [], 2)
    data = struct.pack("<q", 4) + b"\xff" * 16 if b"storage" in content else b""
    return file.getvalue()[:start] + content + keys + data


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Code that runs leaves a trace: a file, a call, a process, an import."""
    sprung: list[str] = []

    def spring(*args: Any, **_: Any) -> Any:
        sprung.append(str(args)[:80])
        raise AssertionError("code ran")

    monkeypatch.chdir(tmp_path)
    for module, name in (
        (os, "system"),
        (subprocess, "Popen"),
        (builtins, "eval"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, spring)
    for name in ("loads", "load"):
        monkeypatch.setattr(pickle, name, spring)
    before = set(sys.modules)
    yield sprung
    assert not sprung
    assert "antigravity" not in set(sys.modules) - before
    assert not (tmp_path / TRAP).exists()


@pytest.mark.parametrize("form", [bytes, archive, legacy])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(
    name: str, form: Any, tmp_path: Path, quiet: list[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = HOSTILE[name]
    with pytest.raises(JsonckptError) as caught:
        loaded(form(content if content.endswith(b"0.") else content + b"."), tmp_path)
    assert str(tmp_path / "state.pt") in str(caught.value)
    # Kilobytes: some hundred megabytes are the objects of a pickle of a million instructions.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert not quiet


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) >= 100


def test_python_s_own_unpickler_would_run_them(tmp_path: Path) -> None:
    """The cases are worth something: in a process of its own the first one springs the trap."""
    data = CODE["reduce os.system"] + b"."
    code = f"import pickle; pickle.loads({data!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / TRAP).exists()


def test_what_may_be_called_is_a_short_list() -> None:
    """Whoever adds a name looks at this list: nothing of it imports, opens or runs anything."""
    assert not {name.split(".")[0] for name in VOCABULARY.constructors} - {
        "_codecs",
        "argparse",
        "builtins",
        "collections",
        "datetime",
        "decimal",
        "fractions",
        "numpy",
        "pathlib",
        "torch",
        "types",
        "uuid",
        "zoneinfo",
    }
    made = {name for name in CONSTRUCTORS if name.startswith("builtins.")}
    assert {name.split(".")[1] for name in made} == {
        *("bytes", "bytearray", "complex", "dict", "list", "tuple", "set"),
        *("frozenset", "range", "slice"),
    }
    assert len(BUILDERS) == 4


def test_a_pickle_that_is_cut_anywhere(tmp_path: Path) -> None:
    state = {"n": [1, 2.5, "a", b"b", None], "k": (1 << 70, {2, 3}), "a": np.ones(2)}
    for protocol in range(6):
        data = pickle.dumps(state, protocol)
        for end in range(2, len(data)):
            with pytest.raises(JsonckptError):
                loaded(data[:end], tmp_path)


def test_a_stream_that_is_cut_anywhere(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"w": torch.arange(3.0)}, file, _use_new_zipfile_serialization=False)
    for end in range(2, len(file.getvalue())):
        with pytest.raises(JsonckptError):
            loaded(file.getvalue()[:end], tmp_path)


def test_any_changed_byte_gives_a_state_or_an_error(tmp_path: Path) -> None:
    state, read = {"n": [1, 2.5, "a", b"b", None], "k": (1 << 70, {2, 3}), "a": np.ones(2)}, 0
    for protocol in (0, 4):
        data = pickle.dumps(state, protocol)
        for place in range(len(data)):
            for change in (1, 0x80, 0xFF):
                damaged = bytearray(data)
                damaged[place] ^= change
                with suppress(JsonckptError):
                    loaded(bytes(damaged), tmp_path)
                    read += 1
    assert read > 10


def test_nested_sets_are_looked_through_once(tmp_path: Path) -> None:
    found = loaded(wrapped(b"K\x01", b"(", b"\x91", 30) + b".", tmp_path)
    assert isinstance(found, frozenset)
    deques = wrapped(b"]", b"ccollections\ndeque\n((", b"ltR")
    assert isinstance(loaded(deques + b".", tmp_path), deque)


def test_a_compressed_archive_has_a_limit(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a/data.pkl", pickle.dumps({}, 2))
        target.writestr("a/data/0", b"\0" * (1 << 20))
    assert loaded(file.getvalue(), tmp_path) == {}
    with pytest.raises(LimitError, match="decompresses to"):
        loaded(file.getvalue(), tmp_path, limits=Limits(total_floor=1 << 19, expansion=1))


def test_records_do_not_overlap(tmp_path: Path) -> None:
    """Each of many records could be copied, and each could be most of the file."""
    file = io.BytesIO()
    state = {"a": torch.zeros(99), "b": torch.ones(99)}
    torch.save(state, file)
    data = bytearray(file.getvalue())
    with zipfile.ZipFile(file) as source:
        ends = {entry.filename.split("/")[-1]: entry.header_offset for entry in source.infolist()}
    central = data.index(b"PK\x01\x02")
    # The record of b begins where that of a does.
    where = data.index(b"data/1", central) - data[central:].index(b"PK\x01\x02")
    start = data.rindex(b"PK\x01\x02", 0, where)
    data[start + 42 : start + 46] = struct.pack("<I", ends["0"])
    assert len(loaded(bytes(data), tmp_path)) == 2  # 800 bytes fit into the file
    overlapping = {str(n): torch.full((10_000,), float(n)) for n in range(4)}
    file = io.BytesIO()
    torch.save(overlapping, file)
    data = bytearray(file.getvalue())
    with zipfile.ZipFile(file) as source:
        entries = [entry for entry in source.infolist() if "/data/" in entry.filename]
    for entry in entries:
        start = data.rindex(b"PK\x01\x02", 0, data.rindex(entry.filename.encode()))
        size = len(data) // 2
        data[start + 20 : start + 28] = struct.pack("<II", size, size)
        data[start + 42 : start + 46] = struct.pack("<I", entries[0].header_offset)
    with pytest.raises(JsonckptError, match="that another storage has"):
        loaded(bytes(data), tmp_path)


def _tar(**parts: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _dumps(*values: Any) -> bytes:
    return b"".join(pickle.dumps(value, 2) for value in values)


@pytest.mark.parametrize(
    "storages",
    [
        _dumps(None), _dumps("x"), _dumps(1, None), _dumps(1, (1, 2)), _dumps(10**15, 1),
        _dumps(1) + b"(]Nctorch\nFloatStorage\nt." + b"\0" * 8,
        _dumps(0, None), _dumps(0, [1]), _dumps(0, [([], 1, 2, 3)]), _dumps(0, [(1, 2, 3, 4)]),
    ],
)  # fmt: skip
def test_tar_files_whose_parts_do_not_fit(storages: bytes, tmp_path: Path) -> None:
    with pytest.raises(JsonckptError):
        loaded(_tar(storages=storages, tensors=_dumps(0), pickle=_dumps({})), tmp_path)
    if storages != _dumps(0, None):
        whole = _tar(storages=_dumps(0, []), tensors=storages, pickle=_dumps({}))
        with suppress(JsonckptError):
            loaded(whole, tmp_path)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" * 10 + b"\xfa\0"])
def test_tar_members_that_go_back(size: bytes, tmp_path: Path) -> None:
    data = bytearray(_tar(storages=_dumps(0, []), tensors=_dumps(0), pickle=_dumps({})))
    data[1024 + 124 : 1024 + 136] = size
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    with pytest.raises(JsonckptError):
        loaded(bytes(data), tmp_path)


@pytest.mark.parametrize("keys", [b"(]l.", b"(}l.", b"(K\x05l.", b"N.", b"X\1\0\0\0a."])
def test_lists_of_storages_that_are_none(keys: bytes, tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save(None, file, _use_new_zipfile_serialization=False)
    head = file.getvalue()[: file.getvalue().rindex(b"\x80\x02]")]
    with pytest.raises(JsonckptError):
        loaded(head + keys, tmp_path)
