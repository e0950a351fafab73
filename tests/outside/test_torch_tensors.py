"""torch's own makers of tensors: every dtype, layout and view, as ``torch.save`` would keep it."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt import StateMismatchError, UnsupportedTypeError
from tests.outside.support import (
    alike,
    into,
    module_of,
    tensors_in,
    through,
    through_torch,
    written,
)
from tests.support import slow

UTILS = module_of("torch.testing._internal.common_utils", "expecttest")
OPS = module_of("torch.testing._internal.common_methods_invocations", "expecttest").op_db
DTYPES = module_of("torch.testing._internal.common_dtype", "expecttest")

#: All that ``make_tensor`` makes, and the rest of what can be a tensor's dtype on the CPU.
MADE = list(
    DTYPES.all_types_and_complex_and(
        torch.bool, torch.half, torch.bfloat16, torch.complex32, *DTYPES.float8_types(),
        torch.uint16, torch.uint32, torch.uint64,
    )
)  # fmt: skip
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (3, 0, 2), (2, 3), (2, 1, 3, 2), (1,) * 9]


def _names(dtype: object) -> str:
    return str(dtype).split(".")[-1]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", MADE, ids=_names)
def test_tensors_of_every_dtype_and_shape(dtype: torch.dtype, tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    for shape, apart in itertools.product(SHAPES, (False, True)):
        try:
            made = torch.testing.make_tensor(shape, dtype=dtype, device="cpu", noncontiguous=apart)
        except (NotImplementedError, RuntimeError):  # float8 has few operations on the CPU
            made = torch.testing.make_tensor(shape, dtype=torch.float32, device="cpu").to(dtype)
        state[f"{shape} {apart}"] = made
        if dtype.is_floating_point or dtype.is_complex:
            state[f"{shape} {apart} with a gradient"] = made.clone().requires_grad_()
            state[f"{shape} {apart} parameter"] = torch.nn.Parameter(made.clone())
    for options in ({}, {"compression": "zstd"}, {"encoding": "list"}):
        assert alike(state, through(state, **options)) is None
    target = {key: torch.zeros_like(value) for key, value in state.items()}
    into(target, state, tmp_path)
    plain = {key: value.detach() for key, value in state.items()}
    assert alike(plain, {key: value.detach() for key, value in target.items()}) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=_names)
def test_views_of_every_kind(dtype: torch.dtype) -> None:
    base = torch.testing.make_tensor((4, 6, 2, 3), dtype=dtype, device="cpu")
    views = {
        "transposed": base.transpose(0, 1),
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "permuted": base.permute(3, 1, 0, 2),
        "narrowed": base.narrow(1, 1, 3),
        "every other": base[::2, ::3],
        "diagonal": base.diagonal(dim1=0, dim2=1),
        "unfolded": base.unfold(1, 4, 1),
        "expanded": base[:1].expand(5, 6, 2, 3),
        "one element": base[1, 2, 1, 2],
        "a row of size 1": base[:1].transpose(0, 1),
    }
    if dtype.is_complex:
        views |= {"conjugated": base.conj(), "imaginary": base.imag, "negated": base.conj().imag}
    for name, view in views.items():
        kept = through({"alone": view})
        assert alike(through_torch({"alone": view}), kept) is None, name
    # All of one memory at once: each is as it was, and they still lie in one memory.
    together = {"base": base, **views}
    del together["channels_last"]
    together.pop("conjugated", None), together.pop("negated", None)
    assert alike(together, through(together)) is None


LAYOUTS = [
    torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc,
]  # fmt: skip


@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=_names)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex128], ids=_names)
@pytest.mark.parametrize("layout", LAYOUTS, ids=_names)
def test_sparse_tensors_of_every_layout(
    layout: torch.layout, dtype: torch.dtype, index: torch.dtype
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls some of the layouts a beta
        tensors = list(
            UTILS.TestCase().generate_simple_inputs(
                layout, device="cpu", dtype=dtype, index_dtype=index
            )
        )
        assert len(tensors) > 3
        for tensor in tensors:
            assert alike([tensor], through([tensor])) is None, tensor


#: Every eighth operator: they share the makers of their samples.
@pytest.mark.parametrize("part", [0, 4, *map(slow, (1, 2, 3, 5, 6, 7))])
def test_the_samples_of_torchs_operators(part: int) -> None:
    made: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in OPS[part * 8 :: 64]:
            if torch.float32 not in op.dtypes:
                continue
            torch.manual_seed(1)
            samples = op.sample_inputs("cpu", torch.float32, requires_grad=False)
            for at, sample in enumerate(itertools.islice(samples, 4)):
                found = dict(tensors_in([sample.input, list(sample.args), dict(sample.kwargs)]))
                made |= {f"{op.formatted_name} {at}{place}": one for place, one in found.items()}
    assert len(made) > 20
    assert alike(made, through(made)) is None


def _of_subclasses() -> dict[str, torch.Tensor]:
    internal = "torch.testing._internal."
    two = module_of(internal + "two_tensor", "expecttest").TwoTensor
    logging = module_of(internal + "logging_tensor", "expecttest").LoggingTensor
    found: dict[str, torch.Tensor] = {
        "two tensors": two(torch.ones(2), torch.zeros(2)),
        "logging": logging(torch.ones(2)),
    }
    for kind, info in module_of(internal + "common_subclass", "expecttest").subclass_db.items():
        if kind not in (torch.Tensor, torch.nn.Parameter):
            found.setdefault(kind.__name__, info.create_fn(3))
    return found


@pytest.mark.parametrize("name", list(_of_subclasses()))
def test_subclasses_are_refused_by_name(name: str) -> None:
    tensor = _of_subclasses()[name]
    with pytest.raises(UnsupportedTypeError, match=type(tensor).__qualname__) as caught:
        through({"model": {"weight": tensor}})
    assert caught.value.hint
    assert "/model/weight" in str(caught.value)


def _without_memory(name: str) -> torch.Tensor:
    """A tensor of two elements that has no memory of its own which could be read or filled."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensor = torch.ones(2)
    if name == "fake":
        with FakeTensorMode():
            tensor = torch.ones(2)
    elif name == "freed":
        tensor.untyped_storage().resize_(0)
    elif name == "functorch":
        kept: list[torch.Tensor] = []

        def keep(batch: torch.Tensor) -> torch.Tensor:
            kept.append(batch)
            return batch

        torch.func.vmap(keep)(torch.ones(2, 2))
        tensor = kept[0]
    elif name == "nested":
        tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    elif name == "mkldnn":
        tensor = tensor.to_mkldnn()
    elif name == "zero":
        tensor = torch._efficientzerotensor((2,))
    elif name == "meta":
        tensor = torch.empty(2, device="meta")
    return tensor


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ["nested", "mkldnn", "functorch", "fake", "zero", "freed"])
def test_tensors_without_memory_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedTypeError, match="/w"):
        through({"w": _without_memory(name)})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "name", ["nested", "mkldnn", "functorch", "fake", "zero", "freed", "meta", "expanded"]
)
def test_targets_that_cannot_be_filled_are_refused_by_name(name: str, tmp_path: Path) -> None:
    target = torch.zeros(1).expand(2) if name == "expanded" else _without_memory(name)
    with pytest.raises((UnsupportedTypeError, StateMismatchError), match="/w"):
        into({"w": target}, {"w": torch.full((2,), 3.0)}, tmp_path)


@pytest.mark.parametrize("name", ["conjugated", "negated", "real", "imaginary", "inference"])
def test_targets_that_are_views_are_filled_with_the_values(name: str, tmp_path: Path) -> None:
    base = torch.zeros(3, dtype=torch.complex64)
    with torch.inference_mode():
        inference = torch.zeros(3)
    target = {
        "conjugated": base.conj(),
        "negated": base.conj().imag,
        "real": base.real,
        "imaginary": base.imag,
        "inference": inference,
    }[name]
    values = torch.tensor([1.0, -2.0, 3.0]).to(target.dtype)
    values = values * (1 + 2j) if target.dtype.is_complex else values
    into([target], [values], tmp_path)
    assert torch.equal(target, values)


def test_tensors_of_the_meta_device_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTypeError, match="meta") as caught:
        written({"w": torch.empty(2, 3, device="meta")}, tmp_path)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_bits_that_are_no_ordinary_numbers() -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    state = {
        "every float16": patterns.view(torch.float16),
        "every bfloat16": patterns.view(torch.bfloat16),
        "float32": (patterns.to(torch.int32) << 16 | 0x5A5A).view(torch.float32),
        "float64": (patterns.to(torch.int64) << 48 | 0x5A5A5A5A5A5A).view(torch.float64),
    }
    for options in ({}, {"compression": "zstd"}, {"encoding": "list"}):
        kept = through(state, **options)
        for name, tensor in state.items():
            width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
            assert torch.equal(tensor.view(width), kept[name].view(width)), name
