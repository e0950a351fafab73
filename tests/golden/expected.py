"""The states of the golden checkpoints, built from literals and integer formulas.

Nothing here is random, nothing is read from a file, and nothing depends on what a release of torch
or NumPy computes: a golden file that once held such a state must give it back for ever.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import math
import pathlib
import types
import uuid
import zoneinfo
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from jsonckpt._src.boxes import Box
from tests.golden.elements import SPECIAL, floats, nan, of_bits, patterns, whole_numbers
from tests.regions import grid


def chunked() -> dict[str, Any]:
    """Tensors of many chunks, the last of them shorter; some compress well and some do not."""
    noise = patterns(8, 96)
    return {
        "ramp": whole_numbers(100, 7, dtype=torch.int32),
        "zeros": torch.zeros(33, 31, dtype=torch.bfloat16),
        "steps": floats(41, 13),
        "noise": of_bits("int64", noise, 8).reshape(8, 12),
        "bytes": torch.tensor([i * i % 251 for i in range(1111)], dtype=torch.uint8),
        "few": floats(3),
        "one": torch.tensor(1.5, dtype=torch.float64),
        "none": torch.zeros(4, 0, 5, dtype=torch.float16),
        "wide": (whole_numbers(50).to(torch.float64) / 8).to(torch.complex128),
    }


def in_regions() -> dict[str, Any]:
    """Tensors that :func:`cut_in_regions` cuts: tied, viewed, wrapped, empty, of one element."""
    w = floats(12, 10)
    return {
        "w": w,
        "tied": w,
        "row": w[3],
        "column": w[2:9, 4],
        "whole": floats(3, 5),
        "pinwheel": whole_numbers(5, 5, dtype=torch.int16),
        "model": {
            "a~b/c": torch.nn.Parameter(floats(6, 4)),
            "half": floats(7, 3, 2).to(torch.bfloat16),
            "mask": whole_numbers(9) % 3 == 0,
        },
        "complex": (whole_numbers(4, 5).to(torch.float64) / 8).to(torch.complex128),
        "bytes": torch.tensor([i * i % 251 for i in range(101)], dtype=torch.uint8),
        "number": torch.tensor(1.5, dtype=torch.float64),
        "none": torch.zeros(3, 0, 2),
        "array": whole_numbers(6, 4).numpy(),
        "deep": whole_numbers(3, 4, 2, 3),
        "step": 7,
    }


def cut_in_regions(name: str, shape: Sequence[int]) -> list[Box] | None:
    """How the tensors of :func:`in_regions` are cut."""
    if name == "/whole":
        return None
    if name == "/pinwheel":  # no straight cut divides it
        offsets = [(0, 0), (0, 3), (3, 2), (2, 0), (2, 2)]
        return list(zip(offsets, [(2, 3), (3, 2), (2, 3), (3, 2), (1, 1)]))
    return grid(*{"/w": (3, 2), "/bytes": (4,), "/deep": (2, 1, 2, 2)}.get(name, (2, 2)))(
        name, shape
    )


def plain_values() -> dict[str, Any]:
    """Every tag of section 6.2 for plain Python, and what needs none."""
    with_metadata: Any = collections.OrderedDict([("b", 1), ("a", 2)])
    with_metadata._metadata = collections.OrderedDict([("", {"version": 1}), ("b", {})])
    hour = datetime.timezone(datetime.timedelta(hours=1))
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    return {
        "plain": [
            "",
            'é\u2028\U0001f600"\\\n\x00\x7f',
            True,
            False,
            None,
            [],
            {},
            {"a": {"b": []}},
        ],
        "integers": [0, -1, 2**53 + 1, -(2**64), 10**639, 10**640 - 1],
        "floats": [0.0, -0.0, 1.0, 0.1, 1e22, 5e-324, -1.7976931348623157e308, 1e16, 123456789.125],
        "$int": [10**640, -(10**640), 7**900],
        "$float": [
            math.inf,
            -math.inf,
            nan(0x7FF8 << 48),
            nan(0xFFF8 << 48),
            nan(0x7FFA_DEAD_BEEF_0001),
        ],
        "$float signalling": nan(0x7FF0_0000_0000_0001),
        "$complex": [
            1.5 - 2j,
            complex(-0.0, math.inf),
            complex(nan(0x7FF8 << 48), nan(0xFFF << 52 | 3)),
        ],
        "$str": ["\ud800", "a\udfffé", {"\udc80": 1}],
        "$bytes": [b"", b"\x00\xff\xfe", bytes(range(256))],
        "$bytearray": bytearray(b"abcd"),
        "$tuple": ((), (1,), (1, (2.0, "x"), [None])),
        "$set": {1, "a", (2, 3), None},
        "$frozenset": frozenset({b"x", frozenset({1, 2})}),
        "$dict": [
            {1: "int", "1": "str", None: 0, False: 1},
            {2.5: 1, (1, "x"): [2], frozenset({3}): 3, b"k": 4},
            {"$tensor": "/no/tensor"},
            {"$a": 1, "b": 2, "$c": 3},
            {nan(0x7FF8 << 48): "nan"},
        ],
        "$ordered_dict": [
            with_metadata,
            collections.OrderedDict([(2, "x"), (1, "y")]),
            collections.OrderedDict([("$x", 1)]),
        ],
        "$defaultdict": [
            collections.defaultdict(None, a=1),
            collections.defaultdict(list, {1: [2]}),
            *[
                collections.defaultdict(factory)
                for factory in (int, float, complex, bool, str, bytes, list, dict, set, tuple)
            ],
            collections.defaultdict(frozenset),
            collections.defaultdict(collections.OrderedDict),
            collections.defaultdict(collections.deque),
        ],
        "$counter": [collections.Counter("abca"), collections.Counter({1: 2, "$": -3})],
        "$deque": [collections.deque([1, (2,)]), collections.deque([1.5], 3), collections.deque()],
        "$range": [range(0), range(1, 10, 2), range(10**700, -1, -(10**699))],
        "$slice": [slice(None), slice(1, None, -2), slice("a", (1,), 2.5)],
        "$ellipsis": ...,
        "$path": pathlib.Path("a/b c/é.json"),
        "$pure_path": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:\\a\\b")],
        "$datetime": [
            moment,
            moment.replace(microsecond=6),
            moment.replace(tzinfo=datetime.timezone.utc),
            moment.replace(microsecond=70000, tzinfo=hour),
            moment.replace(fold=1),
            moment.replace(fold=1, tzinfo=hour),
            datetime.datetime(1, 1, 1),
        ],
        "$date": [datetime.date(1, 1, 1), datetime.date(9999, 12, 31)],
        "$time": [
            datetime.time(1, 2),
            datetime.time(23, 59, 59, 999999, tzinfo=datetime.timezone.utc),
            datetime.time(1, 2, 3, fold=1),
        ],
        "$timedelta": [datetime.timedelta(-1, 5, 7), datetime.timedelta(999999999, 86399, 999999)],
        "$timezone": [
            datetime.timezone.utc,
            hour,
            datetime.timezone(-datetime.timedelta(hours=3, minutes=30, seconds=1, microseconds=9)),
        ],
        "$decimal": [
            decimal.Decimal(t) for t in ("1.50", "-0E-7", "1E+999999", "-sNaN12", "Infinity")
        ],
        "$fraction": [fractions.Fraction(-1, 3), fractions.Fraction(1, 10**700)],
        "$uuid": uuid.UUID("12345678-1234-5678-1234-56781234abcd"),
        "$namespace": argparse.Namespace(lr=0.1, betas=(0.9, 0.95)),
        "$simple_namespace": types.SimpleNamespace(**{"$x": 1, "y": None}),
    }


def zones() -> dict[str, Any]:
    """Values with a named time zone."""
    paris = zoneinfo.ZoneInfo("Europe/Paris")
    return {
        "$zone": [paris, zoneinfo.ZoneInfo("America/Argentina/Buenos_Aires")],
        "$datetime": [
            datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=paris),
            datetime.datetime(2025, 10, 26, 2, 30, tzinfo=paris, fold=1),
        ],
        "$time": datetime.time(12, 30, tzinfo=paris, fold=1),
    }


def numpy_bits(dtype: str, bits: int) -> Any:
    """The NumPy scalar with these bits."""
    kind = np.dtype(dtype)
    return np.frombuffer(bits.to_bytes(kind.itemsize, "little"), kind)[0]


def numpy_values() -> dict[str, Any]:
    """NumPy arrays, scalars and dtypes."""
    state: dict[str, Any] = {}
    for name in ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8"):
        state[name] = (np.arange(6) % 2 * 5 - 2).astype("<i8").astype(name).reshape(2, 3)
    for name in ("<f2", "<f4", "<f8", "<c8", "<c16"):
        size = np.dtype(name).itemsize // (2 if "c" in name else 1)
        raw = b"".join(pattern.to_bytes(size, "little") for pattern in SPECIAL[size][:18])
        state[name] = np.frombuffer(raw, name).copy()
    big = {f">{name[1:]}": state[name].astype(f">{name[1:]}") for name in ("<i4", "<f8", "<c8")}
    big[">f4"] = state["<f4"].byteswap().view(">f4")
    integers = np.arange(24, dtype="<i4").reshape(2, 3, 4)
    return {
        "arrays": state,
        "big-endian": big,
        "0-d": np.array(2.5),
        "empty": np.zeros((0, 3), "<f4"),
        "column-major": np.asfortranarray(integers),
        "column-major text": np.asfortranarray(np.array([["a", "b"], ["c", "é"]])),
        "times": np.array([0, 1, -(2**63), 2**62], "<i8").view("<M8[ns]"),
        "days": np.array([[20455]], "<i8").view("<M8[D]"),
        "big-endian times": np.array([5, -7], ">i8").view(">m8[25s]"),
        "spans": np.array([3, -(2**63)], "<i8").view("<m8[ms]"),
        "text": np.array([["a", "", "bc\u20ac"], ["\ud800", "x\x00y", "\U0001f600"]], "<U3"),
        "bytes": np.array([b"a", b"", b"\xff\x00\x01"], "|S4"),
        "$scalar": [
            np.bool_(True),
            np.int8(-3),
            np.uint16(65535),
            np.int32(-(2**31)),
            np.int64(-(2**63)),
            np.uint64(2**64 - 1),
            np.float16(0.1),
            np.float32(0.1),
            np.float64(0.1),
            np.float32(-0.0),
            np.float64(np.inf),
            np.float16(-np.inf),
            numpy_bits("<f2", 0x7E00),
            numpy_bits("<f4", 0x7FA00001),
            numpy_bits("<f8", 0xFFF8000000000001),
            numpy_bits("<c8", 0x7FC00000_80000000),
            np.complex128(complex(1.5, -2.5)),
            np.array([20455], "<i8").view("<M8[D]")[0],
            np.array([-(2**63)], "<i8").view("<m8[ns]")[0],
            np.str_("ab\u20ac"),
            np.str_("\ud800"),
            np.str_("a\x00"),
            np.bytes_(b"a\xff"),
        ],
        "$numpy_dtype": [np.dtype(name) for name in ("<f4", ">i8", "|b1", "<M8[us]", "<U7", "|S3")],
    }


def torch_values() -> dict[str, Any]:
    """What torch has beside tensors."""
    return {
        "$dtype": [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64],
        "$device": [torch.device("cpu"), torch.device("cuda:1"), torch.device("mps")],
        "$size": [torch.Size([2, 3, 0]), torch.Size([])],
        "$layout": [torch.strided, torch.sparse_coo, torch.sparse_csr],
        "$memory_format": [torch.contiguous_format, torch.channels_last, torch.preserve_format],
        "$torch_version": TorchVersion("2.6.0+cu124"),
    }


def tensors() -> dict[str, Any]:
    """Parameters, gradients, sparse and quantized tensors."""
    csr = torch.sparse_csr_tensor(
        torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), torch.tensor([1.0, -2.0, 3.5]), (2, 3)
    )
    csc = torch.sparse_csc_tensor(
        torch.tensor([0, 1, 2, 2], dtype=torch.int32),
        torch.tensor([1, 0], dtype=torch.int32),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        (2, 3),
    )
    blocks = whole_numbers(2, 2, 3).to(torch.float32)
    bsr = torch.sparse_bsr_tensor(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), blocks, (4, 6))
    bsc = torch.sparse_bsc_tensor(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), blocks, (4, 6))
    coo = torch.sparse_coo_tensor(
        torch.tensor([[1, 0, 1], [2, 0, 2]]), torch.tensor([1.0, 2.0, 3.0]), (2, 3)
    )
    ordered = torch.sparse_coo_tensor(
        torch.tensor([[0, 1]]), floats(2, 3, dtype=torch.float16), (4, 3), is_coalesced=True
    )
    integers = torch.tensor([[0, 7, 128], [129, 200, 255]], dtype=torch.uint8)
    signed = torch.tensor([[-128, 0], [5, 127], [1, -1]], dtype=torch.int8)
    scales = torch.tensor([0.5, 0.25, 0.1], dtype=torch.float64)
    zeros = torch.tensor([0, -3, 7])
    return {
        "$parameter": torch.nn.Parameter(floats(2, 3)),
        "frozen $parameter": torch.nn.Parameter(floats(4), requires_grad=False),
        "integer $parameter": torch.nn.Parameter(whole_numbers(3), requires_grad=False),
        "$requires_grad": floats(2, 2, dtype=torch.float64).requires_grad_(),
        "complex $requires_grad": torch.tensor([1 + 2j, -0.5j]).requires_grad_(),
        "$sparse": {
            "coo": coo,
            "coalesced": ordered,
            "empty": torch.sparse_coo_tensor(
                torch.zeros((2, 0), dtype=torch.int64), torch.zeros(0), (3, 4), is_coalesced=True
            ),
            "csr": csr,
            "csc": csc,
            "bsr": bsr,
            "bsc": bsc,
            "with gradient": torch.sparse_coo_tensor(
                torch.tensor([[0, 2]]), torch.tensor([1.0, 2.0]), (3,)
            ).requires_grad_(),
        },
        "$quantized": {
            "quint8": torch._make_per_tensor_quantized_tensor(integers, 0.125, 128),
            "qint8": torch._make_per_tensor_quantized_tensor(signed, 0.1, -1),
            "qint32": torch._make_per_tensor_quantized_tensor(
                torch.tensor([2**31 - 1, -(2**31)], dtype=torch.int32), 1e-9, 0
            ),
            "per channel": torch._make_per_channel_quantized_tensor(signed, scales, zeros, 0),
        },
    }


def names() -> dict[str, Any]:
    """Keys that need escaping in a tensor's name."""
    keys: list[Any] = ["a/b", "a~b", "~1", "", "é\U0001f600", 'a b"c\\d', "line\nfeed\x00\x7f"]
    keys += ["\ud800", "$x", "\\u0001", "\x01", "a#2", "*[?]"]
    return {
        "keys": {key: torch.tensor(number) for number, key in enumerate(keys)},
        "one place": {0: torch.tensor(0.5), "0": torch.tensor(1.5), 0.0 + 2**60: torch.tensor(2.5)},
        "other keys": {
            None: torch.tensor(1),
            (1, "a"): torch.tensor(2),
            -1.5: [torch.tensor(3), {"x": (torch.tensor(4),)}],
            True: torch.tensor(5),
        },
        "long": {"k" * 900: torch.tensor(6)},
    }


def shared() -> dict[str, Any]:
    """Tied tensors, views of each other, and views of memory that no tensor covers."""
    weight = floats(4, 6)
    row, column, stepped = weight[1], weight[:, 2], weight[::2, 1::3]
    storage = whole_numbers(24, dtype=torch.int16)
    mixed = torch.tensor([i * 7 % 256 for i in range(32)], dtype=torch.uint8)
    parameter = torch.nn.Parameter(floats(3, 2))
    base = np.arange(12, dtype="<f8").reshape(3, 4)
    buffer = np.arange(8, dtype="<i4")
    return {
        "weight": weight,
        "tied": weight,
        "same memory": weight.view(4, 6),
        "transposed": weight.t(),
        "row": row,
        "column": column,
        "stepped": stepped,
        "none of it": weight[:0],
        "first half": storage[0:14],
        "second half": storage[10:24],
        "again": storage[10:24],
        "as floats": mixed[4:20].view(torch.float32),
        "as bytes": mixed[10:32],
        "expanded": torch.tensor([1.5]).expand(3, 4),
        "parameter": parameter,
        "tied parameter": parameter,
        "detached": parameter.detach(),
        "row of parameter": parameter.detach()[2],
        "gradient": weight.detach()[3].requires_grad_(),
        "array": base,
        "row of array": base[1],
        "tied array": base,
        "tensor and": torch.from_numpy(buffer),
        "array of one memory": buffer,
    }


def strided() -> dict[str, Any]:
    """Dense tensors in other orders than row-major, and what is more often there than stored."""
    images = floats(2, 3, 4, 5)
    turned = whole_numbers(12, dtype=torch.int16).reshape(3, 4).t()
    window = whole_numbers(9, dtype=torch.int32)
    return {
        "channels last": images.to(memory_format=torch.channels_last),
        "transposed": floats(3, 4).t(),
        "tied": [turned, turned],
        "one channel": floats(2, 4, 4, 1).permute(0, 3, 1, 2),
        "parameter": torch.nn.Parameter(floats(5, 2).t()),
        "mask": torch.tensor([[True, False], [False, True], [True, True]]).t(),
        "pairs": (whole_numbers(8).to(torch.float32).reshape(2, 4).t() / 4).to(torch.complex64),
        "empty": torch.zeros(0, 3).t(),
        "expanded": torch.tensor([[1.5], [2.5]]).expand(2, 300),
        "windows": window.as_strided((5, 5), (1, 1)),
    }


def storages() -> dict[str, Any]:
    """Tensors that share a storage and no byte of it."""
    buffer = whole_numbers(100, dtype=torch.int32)
    columns = floats(6, 4)
    bytes_ = torch.tensor([i * 7 % 256 for i in range(64)], dtype=torch.uint8)
    return {
        "first": buffer[2:30],
        "row": buffer[40:60].view(5, 4).t(),
        "last": buffer[60:],
        "even": columns[:, ::2],
        "odd": columns[:, 1::2],
        "as bytes": bytes_[3:18],
        "as floats": bytes_[20:48].view(torch.float32),
        "as shorts": bytes_[48:62].view(torch.int16),
        "of its own": floats(3),
    }


def random_states() -> dict[str, Any]:
    """The states of generators of random numbers, in their usual shapes."""
    words = [(i * 2654435761 + 12345) % 2**32 for i in range(624)]
    return {
        "random.getstate()": (3, (*words, 624), None),
        "random.getstate() with gauss": (3, (*words[::-1], 17), -0.75),
        "numpy.random.get_state()": ("MT19937", np.array(words, "<u4"), 624, 0, 0.0),
        "numpy.random.RandomState": {
            "bit_generator": "MT19937",
            "state": {"key": np.array(words[::-1], "<u4"), "pos": 7},
            "has_gauss": 1,
            "gauss": 0.1,
        },
        "numpy.random.default_rng()": {
            "bit_generator": "PCG64",
            "state": {
                "state": 0x2E7F_3A9C_0D41_5B68_9C0F_FE11_D00D_F00D,
                "inc": 0x5851_F42D_4C95_7F2D_1405_7B7E_F767_814F,
            },
            "has_uint32": 1,
            "uinteger": 0xDEADBEEF,
        },
        "numpy Philox": {
            "bit_generator": "Philox",
            "state": {
                "counter": np.array([1, 0, 2**63, 0], "<u8"),
                "key": np.array([2**64 - 1, 5], "<u8"),
            },
            "buffer": np.array([9, 8, 7, 6], "<u8"),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        },
        "torch.get_rng_state()": torch.tensor(
            [(i * 73 + 5) % 256 for i in range(5056)], dtype=torch.uint8
        ),
        "torch.cuda.get_rng_state_all()": [
            torch.tensor([(i * 11 + 1) % 256 for i in range(16)], dtype=torch.uint8)
        ],
    }


def gpt2_shapes(layers: int = 2, width: int = 16) -> dict[str, tuple[int, ...]]:
    """The parameters of a small GPT-2 in the order of its state dict; ``lm_head`` is tied."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (96, width),
        "transformer.wpe.weight": (24, width),
    }
    for layer in range(layers):
        at = f"transformer.h.{layer}"
        for name, shape in {
            "ln_1": (width,),
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "ln_2": (width,),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():
            shapes[f"{at}.{name}.weight"] = shape
            shapes[f"{at}.{name}.bias"] = shape[-1:]
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (width,)
    return shapes


def gpt2() -> dict[str, Any]:
    """A training checkpoint of a small GPT-2 with AdamW, as a training loop saves it."""
    model: Any = collections.OrderedDict()
    optimizer: dict[int, Any] = {}
    for number, (name, shape) in enumerate(gpt2_shapes().items()):
        model[name] = floats(*shape, step=2 * number + 3)
        optimizer[number] = {
            "step": torch.tensor(12.0),
            "exp_avg": floats(*shape, step=2 * number + 5) / 1024,
            "exp_avg_sq": floats(*shape, step=2 * number + 7).square() / 4096,
        }
    model["lm_head.weight"] = model["transformer.wte.weight"]
    modules = ["", "transformer", *(name.rpartition(".")[0] for name in model)]
    metadata = collections.OrderedDict((name, {"version": 1}) for name in dict.fromkeys(modules))
    model._metadata = metadata
    group = {
        "lr": 0.0003,
        "betas": (0.9, 0.95),
        "eps": 1e-08,
        "weight_decay": 0.1,
        "amsgrad": False,
        "foreach": None,
        "maximize": False,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "initial_lr": 0.0006,
    }
    count = len(optimizer)
    return {
        "model_state_dict": model,
        "optimizer_state_dict": {
            "state": optimizer,
            "param_groups": [
                {**group, "params": list(range(count - 2))},
                {**group, "weight_decay": 0.0, "params": [count - 2, count - 1]},
            ],
        },
        "scheduler_state_dict": {
            "base_lrs": [0.0006, 0.0006],
            "last_epoch": 12,
            "_step_count": 13,
            "_last_lr": [0.0003, 0.0003],
            "lr_lambdas": [None, None],
        },
        "scaler_state_dict": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        "epoch": 3,
        "loss": 2.7182818284590451,
        "best_loss": math.inf,
        "config": {"n_layer": 2, "n_embd": 16, "vocab_size": 96, "dtype": torch.bfloat16},
        "ema": [tensor.to(torch.bfloat16) for tensor in list(model.values())[:6]],
    }
