"""NumPy's own arrays for its file format, the states of its generators, Hypothesis's arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jsonckpt import UnsupportedTypeError
from tests.outside.support import module_of, through
from tests.support import difference, examples

FORMAT = module_of("numpy.lib.tests.test_format", "numpy.lib.tests")

PLAIN = [array for array in FORMAT.basic_arrays if array.dtype != object]
OBJECTS = [array for array in FORMAT.basic_arrays if array.dtype == object]


def _in_rows_or_columns(array: Any) -> Any:
    """An array that is neither comes back in rows, as the format says."""
    kept = array.flags.c_contiguous or array.flags.f_contiguous
    return array if kept else array.copy(order="C")


def test_the_basic_arrays_of_numpys_format() -> None:
    assert len(PLAIN) > 100
    for options in ({}, {"compression": "zstd"}, {"encoding": "list"}):
        kept = through({str(at): array for at, array in enumerate(PLAIN)}, **options)
        for array, other in zip(PLAIN, kept.values(), strict=True):
            assert other.dtype.str == array.dtype.str
            assert difference(_in_rows_or_columns(array), other) is None


@pytest.mark.parametrize("array", [*OBJECTS, *FORMAT.record_arrays], ids=lambda a: str(a.dtype)[:9])
def test_objects_and_records_are_refused_with_a_way_out(array: Any) -> None:
    with pytest.raises(UnsupportedTypeError, match="/array") as caught:
        through({"array": array})
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")  # NumPy 2.5
@pytest.mark.parametrize("kind", ["memmap", "matrix", "masked", "recarray", "chararray"])
def test_subclasses_of_arrays_are_refused_by_name(kind: str, tmp_path: Any) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "memmap": lambda: np.memmap(tmp_path / "m", "f4", "w+", shape=(2,)),
        "matrix": lambda: np.ones((2, 2)).view(np.matrix),
        "masked": lambda: np.ma.array([1, 2], mask=[False, True]),
        "recarray": lambda: np.ones(2).view(np.recarray),
        "chararray": lambda: np.array(["a"]).view(np.char.chararray),
    }
    made = makers[kind]()
    if kind == "memmap":
        plain = through({"array": np.asarray(made)})["array"]
        assert plain.tolist() == [0, 0]
    with pytest.raises(UnsupportedTypeError, match=type(made).__name__):
        through({"array": made})


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_the_state_of_every_bit_generator(kind: str) -> None:
    generator = np.random.Generator(getattr(np.random, kind)(12345))
    generator.standard_normal(7)
    generator.integers(0, 9, 3, dtype=np.uint32)  # half of a word is left over
    state = generator.bit_generator.state
    kept = through({"state": state})["state"]
    assert difference(state, kept) is None
    other = np.random.Generator(getattr(np.random, kind)(0))
    other.bit_generator.state = kept
    for draw in ("standard_normal", "random", "standard_exponential"):
        assert np.array_equal(getattr(generator, draw)(50), getattr(other, draw)(50))
    assert np.array_equal(generator.permutation(20), other.permutation(20))


def test_the_state_of_the_old_generator_in_both_forms() -> None:
    old = np.random.RandomState(4)
    old.normal()  # one of two numbers is kept back
    for legacy in (True, False):
        state = old.get_state(legacy=legacy)
        other = np.random.RandomState(0)
        other.set_state(through([state])[0])
        assert difference(state, other.get_state(legacy=legacy)) is None
    sequence = np.random.SeedSequence(99).spawn(1)[0].state
    assert difference(sequence, through([sequence])[0]) is None


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.unicode_string_dtypes(endianness="?", max_len=4),
    hnp.byte_string_dtypes(max_len=4),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))


@st.composite
def views(draw: Any) -> Any:
    array = draw(ARRAYS)
    if draw(st.booleans()):
        array = array.transpose(draw(st.permutations(range(array.ndim))))
    if array.ndim and draw(st.booleans()):
        array = array[draw(hnp.basic_indices(array.shape, allow_ellipsis=False))]
    return array


@settings(max_examples=examples(100), derandomize=True)
@given(views(), st.sampled_from(["base64", "list"]))
def test_arrays_of_any_dtype_shape_and_strides(array: Any, encoding: str) -> None:
    expected = [_in_rows_or_columns(array)]
    assert difference(expected, through([array], encoding=encoding)) is None


@pytest.mark.parametrize("dtype", ["?", "f4", ">f4", "i8", "M8[s]", "c8", "U2", "S2"])
def test_strides_that_go_backwards(dtype: str) -> None:
    base = np.zeros((3, 2), dtype)
    views = [base[::-1], base[:, ::-1], base[:1][::-1], base[::-1, :0], base[:1, :1].T[::-1, ::-1]]
    for view in views:
        assert difference([_in_rows_or_columns(view)], through([view])) is None, view.strides


@settings(max_examples=examples(40), derandomize=True)
@given(st.one_of(hnp.array_dtypes(max_size=3), hnp.nested_dtypes(max_leaves=3)))
def test_any_dtype_is_kept_or_refused(dtype: Any) -> None:
    array = np.zeros(2, dtype)
    try:
        kept = through([array, dtype])
    except UnsupportedTypeError as error:
        supported = dtype.kind not in "OV" and dtype.itemsize <= 16
        assert error.hint and not supported  # noqa: PT017, PT018 - most of them are kept
    else:
        assert difference([array, dtype], kept) is None
