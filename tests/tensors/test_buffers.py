"""tensors.memory and tensors.buffers: dtypes, ranges, and bytes out of one tensor."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.boxes import flat_slices
from jsonckpt._src.errors import FormatError, JsonckptError, UnsupportedTypeError
from jsonckpt._src.format.dtypes import DTYPES
from jsonckpt._src.format.model import contiguous_stride
from jsonckpt._src.tensors import memory
from jsonckpt._src.tensors.buffers import Source, Target, byte_count
from jsonckpt._src.tensors.memory import (
    collapse,
    dtype_name,
    raw_dtype,
    strided,
    torch_dtype,
)
from tests.layouts import CPU, KNOWN, LAYOUTS, contiguous, plain_bytes

# --- dtypes ---------------------------------------------------------------------------------


def test_dtype_names_round_trip_and_agree_with_torch() -> None:
    for name in KNOWN:
        tensor = contiguous(name, 2)
        assert dtype_name(tensor) == name
        assert torch_dtype(name) == tensor.dtype
        assert tensor.itemsize == DTYPES[name].itemsize


def test_dtype_that_the_format_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(memory._NAMES, torch.int8)
    with pytest.raises(UnsupportedTypeError, match=r"torch.int8.*Convert"):
        dtype_name(torch.empty(0, dtype=torch.int8))
    with pytest.raises(FormatError, match="unknown dtype 'float99'"):
        torch_dtype("float99")


def test_dtype_that_this_torch_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(memory._TORCH_DTYPES, "float8_e8m0fnu")
    with pytest.raises(FormatError, match=r"float8_e8m0fnu.*Use a newer torch"):
        torch_dtype("float8_e8m0fnu")


def test_byte_count_refuses_what_no_machine_can_address() -> None:
    assert byte_count("complex128", (2, 3)) == 96
    assert byte_count("float32", (2**62, 2**62, 0)) == 0
    with pytest.raises(FormatError, match="2\\^63"):
        byte_count("int16", (2**31, 2**31))
    with pytest.raises(FormatError, match="unknown dtype"):
        byte_count("nope", ())


def test_big_endian_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(JsonckptError, match="big-endian"):
        Source.of("/x", torch.zeros(1))


# --- flat ranges ----------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_slabs_cover_a_range_exactly_in_order_and_few(
    shape: list[int], data: st.DataObject
) -> None:
    count = contiguous_stride([*shape, 1])[0] * shape[0]
    stop = data.draw(st.integers(0, count))
    start = data.draw(st.integers(0, stop))
    numbers = torch.arange(count).view(shape)
    pieces = list(flat_slices(shape, start, stop))
    seen = [n for prefix, low, high in pieces for n in numbers[prefix][low:high].flatten().tolist()]
    assert seen == list(range(start, stop))
    assert len(pieces) <= 2 * len(shape) - 1


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), max_size=6))
def test_collapse_keeps_elements_and_order(dims: list[tuple[int, int]]) -> None:
    shape = [size for size, _ in dims]
    stride = [step for _, step in dims]
    memory_ = torch.arange(300)
    sizes, steps = collapse(shape, stride)
    before = memory_.as_strided(shape, stride).flatten().tolist()
    assert memory_.as_strided(sizes, steps).flatten().tolist() == before
    assert all(steps[i] != sizes[i + 1] * steps[i + 1] for i in range(len(sizes) - 1))


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", KNOWN)
def test_source_reads_every_dtype_in_every_layout(dtype: str, layout: str) -> None:
    tensor = LAYOUTS[layout](dtype)
    expected = plain_bytes(tensor)
    source = Source.of("/x", tensor)
    assert (source.name, source.dtype, source.device) == ("/x", dtype, "cpu")
    assert source.shape == tuple(tensor.shape)
    assert source.nbytes == len(expected)
    assert source.read(0, source.nbytes) == expected
    size = tensor.itemsize
    chance = random.Random(layout)
    for _ in range(10):
        stop = chance.randint(0, tensor.numel()) * size
        start = chance.randint(0, stop // size) * size
        piece = source.read(start, stop)
        assert piece == expected[start:stop]
        assert piece.format == "B"
        assert piece.readonly


@pytest.mark.filterwarnings("ignore:ComplexHalf")  # from the conversions in this test
@pytest.mark.parametrize("dtype", ["complex32", "complex64", "complex128"])
def test_source_resolves_conj_and_neg_piece_by_piece(dtype: str) -> None:
    tensor = strided(
        torch.arange(48, dtype=torch.float64).to(torch_dtype(DTYPES[dtype].real)).untyped_storage(),
        torch_dtype(dtype),
        0,
        (4, 6),
        (6, 1),
    )
    conj = tensor.conj()
    views = [conj, conj.t(), conj[1:, ::2], conj.imag, conj.imag.t(), conj.real, conj[1, 1]]
    assert [view.is_conj() for view in views] == [True, True, True, False, False, False, True]
    assert [view.is_neg() for view in views] == [False, False, False, True, True, False, False]
    for view in views:
        source = Source.of("/x", view)
        wide = torch.complex128 if view.is_complex() else torch.float64
        size = view.itemsize
        for start in range(0, source.nbytes, size):
            back = torch.frombuffer(
                bytearray(source.read(start, start + size)), dtype=torch_dtype(source.dtype)
            )
            values = view.to(wide).resolve_conj().flatten()
            assert back.to(wide).item() == values[start // size].item()


def test_contiguous_memory_is_not_copied_and_kept_alive() -> None:
    tensor = torch.arange(10, dtype=torch.int32)[2:8].view(2, 3)
    source = Source.of("/x", tensor)
    piece = source.read(4, 12)
    tensor[0, 1] = -1
    assert bytes(piece) == b"\xff\xff\xff\xff\x04\x00\x00\x00"
    del tensor, source
    assert bytes(piece) == b"\xff\xff\xff\xff\x04\x00\x00\x00"


def test_source_of_a_parameter_and_under_other_default_device() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    with torch.device("meta"):
        assert bytes(Source.of("/x", parameter).read(0, 4)) == b"\x00\x00\x80\x3f"
        assert bytes(Source.of("/x", parameter[:, 0]).read(0, 8)) == b"\x00\x00\x80\x3f" * 2
        assert Target.allocate("int8", (1,), device=CPU).window(0, 1) is not None


def test_source_writes_any_true_as_one() -> None:
    odd = torch.tensor([[0, 2], [255, 1]], dtype=torch.uint8).view(torch.bool)
    assert bytes(Source.of("/x", odd).read(0, 4)) == b"\x00\x01\x01\x01"
    assert bytes(Source.of("/x", odd.t()).read(0, 4)) == b"\x00\x01\x01\x01"


def test_source_refuses_ranges_that_split_elements_or_leave_the_record() -> None:
    source = Source.of("/x", torch.zeros(4))
    for start, stop in [(1, 4), (0, 3), (-4, 0), (8, 4), (0, 20)]:
        with pytest.raises(JsonckptError, match="whole elements"):
            source.read(start, stop)


def test_reading_from_several_threads() -> None:
    tensor = torch.arange(64 * 65, dtype=torch.int64).view(64, 65).t()
    source = Source.of("/x", tensor)
    with ThreadPoolExecutor(8) as pool:
        pieces = list(
            pool.map(lambda a: bytes(source.read(a, a + 80)), range(0, source.nbytes, 80))
        )
    assert b"".join(pieces) == tensor.contiguous().numpy().tobytes()


@given(st.data())
def test_random_strided_ranges_read_and_write(data: st.DataObject) -> None:
    """Any view of a block, read in any pieces; the same pieces fill an equal view elsewhere."""
    dtype = data.draw(st.sampled_from(["uint8", "int4", "bfloat16", "float32", "complex128"]))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    block = contiguous(dtype, *shape)
    order = data.draw(st.permutations(range(len(shape))))
    picks = [
        slice(data.draw(st.integers(0, n - 1)), n, data.draw(st.integers(1, 2))) for n in shape
    ]

    def view(of: torch.Tensor) -> torch.Tensor:
        return of[tuple(picks)].permute(order)

    expected = plain_bytes(view(block))
    source = Source.of("/x", view(block))
    copy = contiguous(dtype, *shape)
    copy.view(torch.uint8).zero_()
    target = Target.into(view(copy), dtype, source.shape)
    size = block.itemsize
    cuts = data.draw(st.lists(st.integers(0, source.nbytes // size), max_size=4))
    edges = [0, *sorted(cut * size for cut in cuts), source.nbytes]
    for start, stop in itertools.pairwise(edges):
        piece = source.read(start, stop)
        assert piece == expected[start:stop]
        target.write(start, piece)
    assert plain_bytes(target.finish()) == expected
    outside = copy.view(raw_dtype(copy.dtype)).clone()
    outside[tuple(picks)] = 0
    assert not outside.view(torch.uint8).any()


def test_reading_a_large_transposed_tensor_needs_little_memory() -> None:
    """512 MB in pieces of 1 MiB: the process must not grow by more than 64 MiB."""
    script = """
        import resource, torch
        from jsonckpt._src.tensors.buffers import Source, Target
        block = torch.ones(8192, 16384)
        tensor = block.t()
        source = Source.of("/x", tensor)
        piece = 1 << 20
        source.read(0, piece)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for start in range(0, source.nbytes, 2 * piece):
            source.read(start, start + piece)
        target = Target.into(tensor, "float64", tensor.shape, cast=True)
        for start in range(0, target.nbytes // 32, piece):
            target.write(start, bytes(piece))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert tensor[0, 0] == 0 and tensor[-1, -1] == 1
        print(after - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 64 << 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_round_trip_in_pieces() -> None:
    block = torch.arange(64 * 65, dtype=torch.float32, device="cuda").view(64, 65)
    for tensor in (block, block.t(), block[:, ::2], torch.complex(block, block).conj().t()):
        source = Source.of("/x", tensor)
        assert source.device.startswith("cuda")
        assert source.read(0, source.nbytes) == Source.of("/x", tensor.cpu()).read(0, source.nbytes)
        fresh = Target.allocate(source.dtype, source.shape, device=tensor.device)
        assert fresh.window(0, 8) is None
        strided_target = Target.into(torch.zeros_like(tensor.t()).t(), source.dtype, source.shape)
        cast = Target.into(
            torch.zeros_like(tensor, dtype=torch.complex128), source.dtype, source.shape, cast=True
        )
        for start in range(0, source.nbytes, 1040):
            piece = source.read(start, min(source.nbytes, start + 1040))
            for target in (fresh, strided_target, cast):
                target.write(start, piece)
        for target in (fresh, strided_target, cast):
            assert torch.equal(target.finish(), tensor.to(target.finish().dtype))
