"""tensors.buffers: bytes into one tensor, new or given."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from jsonckpt._src.errors import (
    FormatError,
    JsonckptError,
    StateMismatchError,
    UnsupportedTypeError,
)
from jsonckpt._src.format.dtypes import DTYPES
from jsonckpt._src.linux import linux_call
from jsonckpt._src.tensors.buffers import Source, Target
from jsonckpt._src.tensors.memory import torch_dtype
from tests.layouts import CPU, KNOWN, LAYOUTS, plain_bytes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", KNOWN)
def test_window_and_write_give_the_same_tensor(dtype: str, layout: str) -> None:
    tensor = LAYOUTS[layout](dtype)
    expected = plain_bytes(tensor)
    windowed = Target.allocate(dtype, tensor.shape, device=CPU)
    written = Target.allocate(dtype, tensor.shape, device=CPU)
    assert windowed.nbytes == len(expected)
    assert windowed.needs_data
    half = tensor.numel() // 2 * tensor.itemsize
    for start, stop in [(half, len(expected)), (0, half)]:
        window = windowed.window(start, stop)
        assert window is not None
        window[:] = expected[start:stop]
        written.write(start, expected[start:stop])
    for target in (windowed, written):
        done = target.finish()
        assert (done.dtype, done.shape) == (tensor.dtype, tensor.shape)
        assert done.is_contiguous()
        assert plain_bytes(done) == expected


def test_write_takes_bytes_bytearray_and_unaligned_memoryview() -> None:
    values = torch.arange(6, dtype=torch.float64)
    raw = bytes(Source.of("/x", values).read(0, 48))
    shifted = memoryview(b"." + raw)[1:]
    for data in (raw, bytearray(raw), shifted):
        for fill in (
            torch.zeros(6, dtype=torch.float64),
            torch.zeros(12, dtype=torch.float64)[::2],
        ):
            target = Target.into(fill, "float64", (6,))
            target.write(0, data)
            assert torch.equal(target.finish(), values)


def test_into_returns_the_very_parameter_and_tells_autograd() -> None:
    for cut in (slice(None), slice(None, None, 2)):
        leaf = torch.nn.Parameter(torch.ones(6))
        product = (leaf * leaf).sum()
        target = Target.into(leaf.data[cut] if cut.step else leaf, "float32", leaf[cut].shape)
        data = Source.of("/x", torch.full_like(leaf[cut], 3.0)).read(0, target.nbytes)
        if (window := target.window(0, target.nbytes)) is not None:
            window[:] = data
        else:
            target.write(0, data)
        done = target.finish()
        assert leaf[cut].tolist() == [3.0] * len(done)
        assert leaf.requires_grad
        if not cut.step:
            assert done is leaf
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                product.backward()  # type: ignore[no-untyped-call]


def test_into_conj_and_neg_targets() -> None:
    values = torch.tensor([[1 + 2j, 3 - 4j], [5 + 6j, 7j]])
    raw = bytes(Source.of("/x", values).read(0, 32))
    base = torch.zeros(2, 2, dtype=torch.complex64)
    target = Target.into(base.conj(), "complex64", (2, 2))
    assert target.window(0, 32) is None
    target.write(8, raw[8:])
    target.write(0, raw[:8])
    assert torch.equal(target.finish(), values)
    assert torch.equal(base, values.conj())
    negative = torch.zeros(2, dtype=torch.complex64).conj().imag
    target = Target.into(negative, "float32", (2,))
    target.write(0, bytes(Source.of("/x", torch.tensor([1.5, -2.0])).read(0, 8)))
    assert target.finish().tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ("float32", "float64"),
        ("float64", "bfloat16"),
        ("float32", "float8_e4m3fn"),
        ("int64", "float16"),
        ("bool", "int32"),
        ("bfloat16", "complex64"),
        ("complex64", "complex128"),
    ],
)
def test_cast(saved: str, wanted: str) -> None:
    values = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).to(torch_dtype(saved))
    raw = bytes(Source.of("/x", values).read(0, 6 * values.itemsize))
    for fill in (
        torch.zeros(2, 3).to(torch_dtype(wanted)),
        torch.zeros(3, 2).to(torch_dtype(wanted)).t(),
    ):
        target = Target.into(fill, saved, (2, 3), cast=True)
        assert target.window(0, target.nbytes) is None
        for start in range(0, target.nbytes, values.itemsize):
            target.write(start, raw[start : start + values.itemsize])
        assert target.finish() is fill
        assert torch.equal(fill.to(torch.complex128), values.to(torch.complex128))


def test_into_refusals() -> None:
    with pytest.raises(StateMismatchError, match=r"shape '\[2\]', the target has \[3\]"):
        Target.into(torch.zeros(3), "float32", (2,))
    with pytest.raises(StateMismatchError, match="dtype 'float16'"):
        Target.into(torch.zeros(3), "float16", (3,))
    with pytest.raises(StateMismatchError, match="cannot be cast"):
        Target.into(torch.zeros(3), "int4", (3,), cast=True)
    with pytest.raises(StateMismatchError, match="cannot be cast"):
        Target.into(torch.zeros(3), "complex64", (3,), cast=True)
    with pytest.raises(UnsupportedTypeError, match=r"expanded.*\.clone\(\)"):
        Target.into(torch.zeros(1).expand(3), "float32", (3,))
    with pytest.raises(UnsupportedTypeError, match=r"meta.*to_empty"):
        Target.into(torch.zeros(3, device="meta"), "float32", (3,))
    with pytest.raises(UnsupportedTypeError, match="sparse_coo"):
        Target.into(torch.zeros(3).to_sparse(), "float32", (3,))


def test_bool_bytes_other_than_0_and_1_are_refused() -> None:
    with pytest.raises(FormatError, match="neither 0 nor 1"):
        Target.allocate("bool", (2,), device=CPU).write(0, b"\x01\x02")
    with pytest.raises(FormatError, match="neither 0 nor 1"):
        Target.into(torch.zeros(2), "bool", (2,), cast=True).write(0, b"\x01\x02")
    target = Target.allocate("bool", (2,), device=CPU)
    window = target.window(0, 2)
    assert window is not None
    window[:] = b"\x01\xff"
    with pytest.raises(FormatError, match="neither 0 nor 1"):
        target.finish()


def test_allocate_on_meta_needs_no_data() -> None:
    for dtype in KNOWN:
        target = Target.allocate(dtype, (2, 1000), device=torch.device("meta"))
        assert not target.needs_data
        assert target.window(0, target.nbytes) is None
        target.write(0, bytes(DTYPES[dtype].itemsize))
        done = target.finish()
        assert (done.device.type, done.dtype) == ("meta", torch_dtype(dtype))
        assert done.shape == (2, 1000)


def test_allocate_from_a_given_storage() -> None:
    arena: list[torch.UntypedStorage] = []

    def take(nbytes: int) -> torch.UntypedStorage:
        arena.append(torch.zeros(nbytes, dtype=torch.uint8).untyped_storage())
        return arena[-1]

    target = Target.allocate("int16", (2, 2), device=CPU, allocate=take)
    target.write(2, b"\x05\x00")
    done = target.finish()
    assert done.tolist() == [[0, 5], [0, 0]]
    assert done.data_ptr() == arena[0].data_ptr()
    with pytest.raises(JsonckptError, match="storage of 1 bytes"):
        Target.allocate(
            "int16",
            (2,),
            device=CPU,
            allocate=lambda _: torch.zeros(1, dtype=torch.uint8).untyped_storage(),
        )


def test_empty_tensors_with_sizes_beyond_torch() -> None:
    assert Target.allocate("int8", (2**63 - 1, 0), device=CPU).finish().shape == (2**63 - 1, 0)
    with pytest.raises(FormatError, match="torch has no tensor of shape"):
        Target.allocate("int8", (2**62, 2**62, 0), device=CPU)


def test_target_refuses_ranges_that_split_elements_or_leave_the_record() -> None:
    target = Target.allocate("float32", (4,), device=CPU)
    for start, stop in [(1, 4), (0, 3), (-4, 0), (0, 20)]:
        with pytest.raises(JsonckptError, match="whole elements"):
            target.window(start, stop)
    for start, length in [(1, 4), (0, 3), (12, 8)]:
        with pytest.raises(JsonckptError, match="whole elements"):
            target.write(start, bytes(length))


def test_writing_from_several_threads() -> None:
    source = Source.of("/x", torch.arange(64 * 65, dtype=torch.int64).view(64, 65))
    fill = torch.zeros(65, 64, dtype=torch.int64).t()
    target = Target.into(fill, "int64", (64, 65))
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda a: target.write(a, source.read(a, a + 80)), range(0, source.nbytes, 80))
        )
    assert torch.equal(target.finish(), torch.arange(64 * 65).view(64, 65))


def test_no_c_library_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_libc(*_: object, **__: object) -> object:
        raise OSError("no libc")

    big = 5 << 20
    assert Target.allocate("uint8", (big,), device=CPU).finish().numel() == big
    monkeypatch.setattr("ctypes.CDLL", no_libc)
    linux_call.cache_clear()  # the C library is looked for once in a process
    try:
        assert linux_call("madvise") is None
        assert Target.allocate("uint8", (big,), device=CPU).finish().numel() == big
    finally:
        linux_call.cache_clear()
