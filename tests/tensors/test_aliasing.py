"""tensors.aliasing: what becomes a record, what a view, and that memory comes back as it was."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError, JsonckptError, UnsupportedTypeError
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.tensors.aliasing import StateReader, StateWriter
from jsonckpt._src.tensors.buffers import Source
from jsonckpt._src.tensors.memory import torch_dtype
from tests.flat_states import load, names, read, records, shares, tied, view, write

# --- what is one record ---------------------------------------------------------------------


def test_tied_tensors_are_one_record_by_memory_not_by_object() -> None:
    w = torch.randn(2, 3)
    state, sources = write({"/a": w, "/b": w, "/c": w.view(2, 3), "/d": w.detach()})
    assert state.pop("/a") == {"$tensor": "/a"}
    assert state == {name: tied(name, "/a") for name in ("/b", "/c", "/d")}
    assert records(sources) == [("/a", "float32", (2, 3))]
    loaded = read({"/a": {"$tensor": "/a"}, **state}, sources)
    assert loaded["/a"] is loaded["/b"] is loaded["/c"] is loaded["/d"]
    assert torch.equal(loaded["/a"], w)


def test_strides_of_dimensions_of_size_one_do_not_matter() -> None:
    w = torch.randn(1, 3)
    state, sources = write({"/a": w, "/b": w.as_strided((1, 3), (77, 1))})
    assert state["/b"] == tied("/b", "/a")
    assert len(sources) == 1


def test_views_of_a_tensor_that_covers_them() -> None:
    w = torch.arange(12.0).view(3, 4)
    state, sources = write({"/row": w[1], "/w": w, "/t": w.t(), "/flat": w.view(-1), "/row2": w[1]})
    assert records(sources) == [("/w", "float32", (3, 4))]
    assert state == {
        "/row": view("/row", "/w", "float32", [4], [1], 4),
        "/w": {"$tensor": "/w"},
        "/t": view("/t", "/w", "float32", [4, 3], [1, 4], 0),
        "/flat": view("/flat", "/w", "float32", [12], [1], 0),
        "/row2": view("/row2", "/w", "float32", [4], [1], 4),
    }
    loaded = read(state, sources)
    assert loaded["/row"].data_ptr() == loaded["/row2"].data_ptr()
    loaded["/flat"][5] = -1
    assert loaded["/w"][1, 1] == loaded["/t"][1, 1] == loaded["/row"][1] == -1


def test_overlapping_slices_become_views_of_a_storage() -> None:
    base = torch.arange(100.0)
    state, sources = write({"/x": torch.zeros(1), "/a": base[10:20], "/b": base[15:30]})
    # 10 floats are byte 40: the record begins at byte 32, a multiple of 16.
    assert records(sources) == [("/x", "float32", (1,)), ("$storage/0", "float32", (22,))]
    assert state["/a"] == view("/a", "$storage/0", "float32", [10], [1], 2)
    assert state["/b"] == view("/b", "$storage/0", "float32", [15], [1], 7)
    loaded = read(state, sources)
    assert loaded["/a"].tolist() == list(range(10, 20))
    assert loaded["/b"].tolist() == list(range(15, 30))
    loaded["/a"][5] = -1
    assert loaded["/b"][0] == -1


def test_storages_are_numbered_by_first_appearance() -> None:
    one, two = torch.zeros(10), torch.zeros(10)
    state, sources = write({"/b1": two[:6], "/a1": one[:6], "/a2": one[4:], "/b2": two[4:]})
    assert [source.name for source in sources] == ["$storage/0", "$storage/1"]
    assert state["/b2"] == view("/b2", "$storage/0", "float32", [6], [1], 4)
    assert state["/a2"] == view("/a2", "$storage/1", "float32", [6], [1], 4)


def test_disjoint_slices_are_saved_by_themselves() -> None:
    base = torch.arange(1000.0)
    state, sources = write({"/a": base[:10], "/b": base[10:20], "/c": base[990:]})
    assert state == {name: {"$tensor": name} for name in ("/a", "/b", "/c")}
    assert [source.nbytes for source in sources] == [40, 40, 40]


def test_one_column_is_saved_by_itself_row_major() -> None:
    w = torch.arange(12.0).view(3, 4)
    state, sources = write({"/c": w[:, 1]})
    assert state == {"/c": {"$tensor": "/c"}}
    assert records(sources) == [("/c", "float32", (3,))]
    assert load(sources[0]).tolist() == [1, 5, 9]


def test_interleaved_columns_share_no_byte_but_their_storage() -> None:
    w = torch.arange(12.0).view(3, 4)
    state, sources = write({"/q": w[:, :2], "/k": w[:, 2:3], "/v": w[:, 3:]})
    assert records(sources) == [("$storage/0", "float32", (12,))]
    assert state == {
        "/q": view("/q", "$storage/0", "float32", [3, 2], [4, 1], 0),
        "/k": view("/k", "$storage/0", "float32", [3, 1], [4, 1], 2),
        "/v": view("/v", "$storage/0", "float32", [3, 1], [4, 1], 3),
    }


def test_columns_of_a_matrix_that_is_mostly_not_saved_are_records_of_their_own() -> None:
    w = torch.arange(15.0).view(3, 5)
    state, sources = write({"/a": w[:, :1], "/b": w[:, 3:4]})
    assert state == {name: {"$tensor": name} for name in ("/a", "/b")}
    assert sum(source.nbytes for source in sources) == 24


def test_expanded_tensors_alone_and_with_their_origin() -> None:
    row = torch.arange(3.0)
    state, sources = write({"/e": row.expand(2, 3)})
    assert records(sources) == [("$storage/0", "float32", (3,))]
    assert state == {"/e": view("/e", "$storage/0", "float32", [2, 3], [0, 1], 0)}
    assert read(state, sources)["/e"].tolist() == [[0, 1, 2], [0, 1, 2]]
    state, sources = write({"/e": row.expand(2, 3), "/r": row})
    assert records(sources) == [("/r", "float32", (3,))]
    assert state["/e"] == view("/e", "/r", "float32", [2, 3], [0, 1], 0)
    loaded = read(state, sources)
    loaded["/r"][0] = 7
    assert loaded["/e"].tolist() == [[7, 1, 2], [7, 1, 2]]


def test_a_transposed_tensor_covers_nothing_for_its_record_is_row_major() -> None:
    w = torch.arange(6.0).view(2, 3)
    state, sources = write({"/t": w.t(), "/row": w[1]})
    assert records(sources) == [("$storage/0", "float32", (6,))]
    assert state["/t"] == view("/t", "$storage/0", "float32", [3, 2], [1, 3], 0)
    assert state["/row"] == view("/row", "$storage/0", "float32", [3], [1], 3)


def test_views_of_other_dtypes() -> None:
    w = torch.arange(4.0)
    state, sources = write({"/f": w, "/i": w.view(torch.int16)[2:4]})
    assert records(sources) == [("/f", "float32", (4,))]
    assert state["/i"] == view("/i", "/f", "int16", [2], [1], 2)
    state, sources = write({"/f": w[:3], "/i": w.view(torch.int16)[4:]})
    assert records(sources) == [("$storage/0", "uint8", (16,))]
    assert state["/f"] == view("/f", "$storage/0", "float32", [3], [1], 0)
    assert state["/i"] == view("/i", "$storage/0", "int16", [4], [1], 4)
    loaded = read(state, sources)
    loaded["/i"].zero_()
    assert loaded["/f"].tolist() == [0, 1, 0]


def test_dtypes_that_torch_cannot_copy_share_as_well() -> None:
    int4 = torch_dtype("int4")
    raw = torch.arange(8, dtype=torch.uint8)
    state, sources = write({"/a": raw.view(int4)[:6], "/b": raw.view(int4)[4:]})
    assert records(sources) == [("$storage/0", "int4", (8,))]
    loaded = read(state, sources)
    assert loaded["/b"].view(torch.uint8).tolist() == [4, 5, 6, 7]


def test_parts_of_a_complex_tensor() -> None:
    z = torch.tensor([1 + 2j, 3 + 4j])
    state, sources = write({"/re": z.real, "/im": z.imag})
    assert records(sources) == [("$storage/0", "float32", (4,))]
    state, sources = write({"/re": z.real, "/im": z.imag, "/z": z})
    assert records(sources) == [("/z", "complex64", (2,))]
    assert state["/im"] == view("/im", "/z", "float32", [2], [2], 1)


def test_conjugated_and_negated_tensors_are_resolved_and_saved_by_themselves() -> None:
    z = torch.tensor([1 + 2j, 3 + 4j])
    state, sources = write({"/z": z, "/c": z.conj(), "/n": z.conj().imag, "/c2": z.conj()})
    assert state["/c"] == {"$tensor": "/c"}
    assert state["/c2"] == tied("/c2", "/c")
    assert state["/n"] == {"$tensor": "/n"}
    loaded = read(state, sources)
    assert loaded["/c"].tolist() == [1 - 2j, 3 - 4j]
    assert loaded["/n"].tolist() == [-2, -4]
    assert loaded["/z"].tolist() == [1 + 2j, 3 + 4j]


def test_empty_tensors_are_records_of_their_own() -> None:
    w = torch.zeros(4)
    state, sources = write({"/w": w, "/e": w[2:2], "/e2": w[2:2]})
    assert state == {name: {"$tensor": name} for name in ("/w", "/e", "/e2")}
    assert [source.nbytes for source in sources] == [16, 0, 0]


def test_bools_of_odd_bytes_keep_their_values_not_their_memory() -> None:
    raw = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)
    state, sources = write({"/b": raw.view(torch.bool), "/u": raw})
    loaded = read(state, sources)
    assert loaded["/b"].tolist() == [False, True, True, True]
    assert loaded["/u"].tolist() == [0, 1, 2, 255]
    raw = torch.tensor([0, 1, 1, 0], dtype=torch.uint8)
    state, sources = write({"/b": raw.view(torch.bool), "/u": raw})
    assert records(sources) == [("/u", "uint8", (4,))]
    loaded = read(state, sources)
    loaded["/u"].zero_()
    assert not loaded["/b"].any()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.lists(st.tuples(st.integers(1, 4), st.integers(0, 8)), max_size=2),
            st.sampled_from([torch.int32, torch.uint8, torch.int64]),
        ),
        max_size=6,
    )
)
def test_any_views_of_one_memory_come_back_with_their_values_and_sharing(
    specs: list[tuple[int, list[tuple[int, int]], torch.dtype]],
) -> None:
    block = torch.randint(0, 255, (1024,), dtype=torch.uint8)
    before = {
        f"/{i}": block.view(dtype).as_strided([d[0] for d in dims], [d[1] for d in dims], offset)
        for i, (offset, dims, dtype) in enumerate(specs)
    }
    state, sources = write(before)
    after = read(state, sources)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor)
        assert after[name].dtype == tensor.dtype
    for one, other in itertools.combinations(before, 2):
        # Elements that were apart may come back apart or in one storage, but never shared.
        assert shares(after[one], after[other]) == shares(before[one], before[other])


# --- NumPy arrays ---------------------------------------------------------------------------


def read_arrays(state: dict[str, Json], sources: list[Source]) -> dict[str, Any]:
    reader = StateReader({s.name: load(s) for s in sources}, names(state))
    return {name: reader.get_array(value, name) for name, value in state.items()}


@pytest.mark.parametrize(
    "kind", ["?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d", "F", "D"]
)
def test_arrays_share_memory_and_read_only_ones_do_not_warn(kind: str) -> None:
    array = np.arange(6).astype(kind).reshape(2, 3)
    array.flags.writeable = False
    state, sources = write({"/a": array, "/e": array[:0]})
    assert state == {"/a": {"$tensor": "/a"}, "/e": {"$tensor": "/e"}}
    assert sources[0].shape == (2, 3)
    assert np.shares_memory(np.frombuffer(sources[0].read(0, array.nbytes), kind), array)
    loaded = read_arrays(state, sources)["/a"]
    assert loaded.dtype == array.dtype
    assert np.array_equal(loaded, array)
    assert loaded.flags.writeable


def test_arrays_and_tensors_of_the_same_memory() -> None:
    array = np.arange(6, dtype=np.float32)
    tensor = torch.from_numpy(array)
    state, sources = write({"/a": array, "/t": tensor, "/half": array[3:]})
    assert records(sources) == [("/a", "float32", (6,))]
    assert state["/t"] == tied("/t", "/a")
    assert state["/half"] == view("/half", "/a", "float32", [3], [1], 3)


def test_arrays_in_a_chain_have_one_storage_though_none_covers_it() -> None:
    array = np.arange(20, dtype=np.int16)
    state, sources = write({"/a": array[:8], "/b": array[6:14], "/c": array[12:]})
    del array
    assert records(sources) == [("$storage/0", "int16", (20,))]
    loaded = read_arrays(state, sources)
    assert loaded["/c"].tolist() == list(range(12, 20))
    loaded["/a"][7] = -1
    assert loaded["/b"][1] == -1


def test_arrays_whose_elements_lie_across_each_other_are_saved_apart() -> None:
    raw = np.arange(12, dtype=np.uint8)
    state, sources = write({"/a": raw[:8].view("<i4"), "/b": raw[2:10].view("<i4")})
    assert state == {"/a": {"$tensor": "/a"}, "/b": {"$tensor": "/b"}}
    assert [source.read(0, 8).tobytes() for source in sources] == [
        bytes(range(8)),
        bytes(range(2, 10)),
    ]


def test_arrays_that_torch_does_not_have() -> None:
    for array in (np.array(["a"]), np.array([None]), np.zeros(2, np.longdouble)):
        with pytest.raises(UnsupportedTypeError, match=r"tensor '/a': torch cannot take"):
            StateWriter().put_array(array, "/a")


def test_array_of_a_dtype_that_numpy_lacks_and_on_meta() -> None:
    reader = StateReader({"/a": torch.zeros(2, dtype=torch.bfloat16)}, {"/a"})
    with pytest.raises(FormatError, match=r"NumPy has no torch\.bfloat16"):
        reader.get_array({"$tensor": "/a"}, "/a")
    reader = StateReader({"/a": torch.zeros(2, device="meta")}, {"/a"})
    with pytest.raises(JsonckptError, match="meta"):
        reader.get_array({"$tensor": "/a"}, "/a")


# --- parameters and gradients ---------------------------------------------------------------


def test_parameters_and_leaves() -> None:
    weight = torch.nn.Parameter(torch.randn(2, 2))
    frozen = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    leaf = torch.ones(2, requires_grad=True)
    buffer = torch.nn.Buffer(torch.zeros(1))
    state, sources = write(
        {
            "/w": weight,
            "/tied": weight,
            "/plain": weight.data,
            "/frozen": frozen,
            "/leaf": leaf,
            "/sum": leaf * 2,
            "/buffer": buffer,
            "/row": weight[1],
        }
    )
    assert state == {
        "/w": {"$parameter": {"data": {"$tensor": "/w"}, "requires_grad": True}},
        "/tied": {"$parameter": {"data": tied("/tied", "/w"), "requires_grad": True}},
        "/plain": tied("/plain", "/w"),
        "/frozen": {"$parameter": {"data": {"$tensor": "/frozen"}, "requires_grad": False}},
        "/leaf": {"$requires_grad": {"$tensor": "/leaf"}},
        "/sum": {"$requires_grad": {"$tensor": "/sum"}},
        "/buffer": {"$tensor": "/buffer"},
        "/row": {"$requires_grad": view("/row", "/w", "float32", [2], [1], 2)},
    }
    loaded = read(state, sources)
    assert type(loaded["/w"]) is type(loaded["/frozen"]) is torch.nn.Parameter
    assert loaded["/w"] is loaded["/tied"]
    assert loaded["/w"].requires_grad
    assert not loaded["/frozen"].requires_grad
    assert type(loaded["/plain"]) is torch.Tensor
    assert not loaded["/plain"].requires_grad
    assert shares(loaded["/plain"], loaded["/w"])
    for name in ("/leaf", "/sum", "/row"):
        assert loaded[name].requires_grad
        assert loaded[name].is_leaf
    assert loaded["/sum"].tolist() == [2, 2]
    assert shares(loaded["/row"], loaded["/w"])


# --- other devices --------------------------------------------------------------------------


def test_views_on_meta() -> None:
    w = torch.arange(12.0).view(3, 4)
    state, sources = write({"/w": w, "/t": w.t(), "/b": w.view(torch.uint8)[0]})
    loaded = read(state, sources, torch.device("meta"))
    assert loaded["/t"].is_meta
    assert (loaded["/t"].shape, loaded["/t"].stride()) == ((4, 3), (1, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_cuda() -> None:
    w = torch.arange(12.0, device="cuda").view(3, 4)
    state, sources = write({"/w": w, "/row": w[1], "/cpu": w.cpu()})
    assert [source.device for source in sources] == ["cuda:0", "cpu"]
    assert state["/row"] == view("/row", "/w", "float32", [4], [1], 4)
    loaded = read(state, sources, torch.device("cuda"))
    loaded["/w"].zero_()
    assert not loaded["/row"].any()


# --- what would be lost, and what is not there ------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_attributes_that_would_be_lost_are_refused_by_name() -> None:
    for tensor in (
        torch.ones(2),
        torch.nn.Parameter(torch.ones(2)),
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (3,)),
    ):
        tensor.partition_dim = 1  # type: ignore[attr-defined]
        with pytest.raises(UnsupportedTypeError, match=r"'partition_dim'.*detach") as caught:
            write({"/w": tensor})
        assert caught.value.tensor == "/w"
        write({"/w": tensor.detach()})


def test_marks_of_libraries_and_hooks_stand_in_no_ones_way() -> None:
    weight: Any = torch.nn.Parameter(torch.ones(2))
    weight._is_hf_initialized = weight._ddp_ignored = True
    weight.register_hook(lambda grad: grad)
    weight.register_post_accumulate_grad_hook(lambda _: None)
    weight.sum().backward()
    state, sources = write({"/w": weight, "/g": weight.grad, "/b": torch.nn.Buffer(torch.ones(1))})
    assert type(read(state, sources)["/w"]) is torch.nn.Parameter


def test_a_tensor_without_memory_is_never_read() -> None:
    zeros = torch._efficientzerotensor((3,))
    functional = torch._to_functional_tensor(torch.ones(3))
    for tensor in (zeros, functional):
        with pytest.raises(UnsupportedTypeError, match=r"no memory.*clone\(\)"):
            write({"/z": tensor})
        with pytest.raises(UnsupportedTypeError, match="no memory"):
            Source.of("/z", tensor)
    state, sources = write({"/z": zeros.clone()})
    assert read(state, sources)["/z"].tolist() == [0, 0, 0]


def test_a_tensor_inside_a_function_transform_is_refused() -> None:
    refused = []

    def function(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(UnsupportedTypeError, match=r"torch\.func"):
            write({"/x": x})
        refused.append(x)
        return x.sum()

    torch.func.vmap(function)(torch.ones(2, 3))
    torch.func.grad(function)(torch.ones(3))
    assert len(refused) == 2


def test_what_is_seen_alike_at_two_places_is_one_object() -> None:
    base = torch.arange(10.0)
    state, sources = write({"/a": base[:6], "/b": base[4:], "/again": base[:6]})
    loaded = read(state, sources)
    assert loaded["/a"] is loaded["/again"]
    assert shares(loaded["/a"], loaded["/b"])
