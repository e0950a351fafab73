"""jsonckpt.sharing: what becomes a record, what a view, and that memory comes back as it was."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt.errors import FormatError, JsonckptError, UnsupportedTypeError
from jsonckpt.sharing import StateReader, StateWriter
from jsonckpt.tensors import Source, Target, torch_dtype
from jsonckpt.tree import OMIT, Json, tensor_names

CPU = torch.device("cpu")


def write(values: Mapping[str, Any]) -> tuple[dict[str, Json], list[Source]]:
    """A flat state as ``tree`` would write it."""
    writer = StateWriter()
    state: dict[str, Json] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            state[name] = writer.put_array(value, name)
        else:
            assert writer.is_tensor(value)
            state[name] = writer.put(value, name)
    return state, writer.sources()


def records(sources: list[Source]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(source.name, source.dtype, source.shape) for source in sources]


def load(source: Source, device: torch.device = CPU) -> torch.Tensor:
    target = Target.allocate(source.dtype, source.shape, device=device)
    target.write(0, source.read(0, source.nbytes))
    return target.finish()


def names(state: Json) -> set[str]:
    return {name for name, _, _ in tensor_names(state)}


def read(
    state: dict[str, Json], sources: list[Source], device: torch.device = CPU
) -> dict[str, Any]:
    reader = StateReader({s.name: load(s, device) for s in sources}, names(state))
    loaded = {}
    for name, value in state.items():
        assert isinstance(value, dict)
        [(tag, body)] = value.items()
        loaded[name] = reader.get(tag, body, name)
    return loaded


def round_trip(**values: torch.Tensor) -> dict[str, Any]:
    return read(*write({f"/{name}": value for name, value in values.items()}))


def shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return np.shares_memory(one.detach().numpy(), other.detach().numpy())


def view(
    name: str, of: str, dtype: str, shape: list[int], stride: list[int], offset: int
) -> dict[str, Any]:
    body = {"name": name, "of": of, "dtype": dtype, "shape": shape}
    return {"$view": {**body, "stride": stride, "offset": offset}}


def body(tagged: Json) -> dict[str, Any]:
    assert isinstance(tagged, dict)
    [inner] = tagged.values()
    assert isinstance(inner, dict)
    return inner


def tied(name: str, of: str) -> dict[str, Any]:
    return {"$tied": {"name": name, "of": of}}


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


def test_interleaved_columns_share_nothing() -> None:
    w = torch.arange(12.0).view(3, 4)
    state, sources = write({"/q": w[:, :2], "/k": w[:, 2:3], "/v": w[:, 3:]})
    assert state == {name: {"$tensor": name} for name in ("/q", "/k", "/v")}
    assert sum(source.nbytes for source in sources) == 48


def test_expanded_tensors_alone_and_with_their_origin() -> None:
    row = torch.arange(3.0)
    state, sources = write({"/e": row.expand(2, 3)})
    assert state == {"/e": {"$tensor": "/e"}}
    assert load(sources[0]).tolist() == [[0, 1, 2], [0, 1, 2]]
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
    assert records(sources) == [("/re", "float32", (2,)), ("/im", "float32", (2,))]
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


# --- sparse and quantized tensors -----------------------------------------------------------


def test_sparse_coo_keeps_order_duplicates_and_flag() -> None:
    indices = torch.tensor([[1, 0, 1], [2, 0, 2]])
    sparse = torch.sparse_coo_tensor(
        indices, torch.tensor([1.0, 2.0, 3.0]), (2, 3), check_invariants=True
    )
    leaf = sparse.detach().requires_grad_()
    state, sources = write({"/s": sparse, "/c": sparse.coalesce(), "/g": leaf})
    assert state["/s"] == {
        "$sparse": {
            "layout": "coo",
            "shape": [2, 3],
            "indices": {"$tensor": "/s/indices"},
            "values": {"$tensor": "/s/values"},
            "coalesced": False,
        }
    }
    parts = {"indices": tied("/g/indices", "/s/indices"), "values": tied("/g/values", "/s/values")}
    assert state["/g"] == {"$requires_grad": {"$sparse": {**body(state["/s"]), **parts}}}
    assert records(sources)[:2] == [
        ("/s/indices", "int64", (2, 3)),
        ("/s/values", "float32", (3,)),
    ]
    loaded = read(state, sources)
    assert not loaded["/s"].is_coalesced()
    assert loaded["/s"]._indices().tolist() == indices.tolist()
    assert loaded["/s"]._values().tolist() == [1, 2, 3]
    assert loaded["/c"].is_coalesced()
    assert loaded["/c"].values().tolist() == [2, 4]
    assert loaded["/g"].requires_grad


@pytest.mark.filterwarnings("ignore:Sparse")  # from the conversion in this test
@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "bsc"])
def test_sparse_compressed(layout: str) -> None:
    dense = torch.tensor([[0.0, 1.0, 0.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    block = (1, 2) if layout.startswith("b") else None
    kind: torch.layout = getattr(torch, f"sparse_{layout}")
    sparse = dense.to_sparse(layout=kind, blocksize=block)
    state, sources = write({"/s": torch.nn.Parameter(sparse)})
    assert state["/s"] == {
        "$parameter": {
            "data": {
                "$sparse": {
                    "layout": layout,
                    "shape": [2, 4],
                    "compressed": {"$tensor": "/s/compressed"},
                    "plain": {"$tensor": "/s/plain"},
                    "values": {"$tensor": "/s/values"},
                }
            },
            "requires_grad": True,
        }
    }
    loaded = read(state, sources)["/s"]
    assert loaded.layout == kind
    assert torch.equal(loaded.detach().to_dense(), dense)
    assert type(loaded) is torch.nn.Parameter


def test_sparse_on_meta() -> None:
    sparse = torch.eye(3).to_sparse()
    state, sources = write({"/s": sparse})
    loaded = read(state, sources, torch.device("meta"))["/s"]
    assert loaded.is_meta
    assert loaded.layout == torch.sparse_coo
    assert loaded.shape == (3, 3)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_compressed_on_meta_is_refused_clearly() -> None:
    state, sources = write({"/s": torch.eye(3).to_sparse_csr()})
    with pytest.raises(JsonckptError, match=r"no torch\.sparse_csr tensors on the meta device"):
        read(state, sources, torch.device("meta"))


def quantize(kind: str) -> torch.Tensor:
    values = torch.linspace(-3, 3, 12).view(3, 4)
    if kind in ("quint8", "qint8", "qint32"):
        return torch.quantize_per_tensor(values, 0.1, 3, getattr(torch, kind))
    scales = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    points = torch.tensor([1, 2, 3])
    if kind == "per_channel":
        return torch.quantize_per_channel(values, scales, points, 0, torch.qint8)
    dtype = torch.quint4x2 if kind == "quint4x2" else torch.quint8
    return torch.quantize_per_channel(values, scales.float(), points.float(), 0, dtype)


quantized = pytest.mark.filterwarnings("ignore:torch.quantize")  # from making them


@quantized
def test_quantized_per_tensor_is_said_literally_and_shares_memory() -> None:
    tensor = quantize("quint8")
    state, sources = write({"/q": tensor, "/tied": tensor})
    assert state["/q"] == {
        "$quantized": {
            "dtype": "quint8",
            "scheme": "per_tensor_affine",
            "data": {"$tensor": "/q/data"},
            "scale": 0.1,
            "zero_point": 3,
        }
    }
    tied_data = {"data": tied("/tied/data", "/q/data")}
    assert state["/tied"] == {"$quantized": {**body(state["/q"]), **tied_data}}
    assert records(sources) == [("/q/data", "uint8", (3, 4))]
    loaded = read(state, sources)
    assert loaded["/q"] is loaded["/tied"]


@quantized
@pytest.mark.parametrize("kind", ["quint8", "qint8", "qint32", "per_channel", "float_qparams"])
def test_quantized_round_trip(kind: str) -> None:
    tensor = quantize(kind)
    for one in (tensor, tensor.t() if tensor.qscheme() == torch.per_tensor_affine else tensor):
        loaded = round_trip(q=one)["/q"]
        assert (loaded.dtype, loaded.qscheme()) == (one.dtype, one.qscheme())
        assert torch.equal(loaded.int_repr(), one.int_repr())
        assert torch.equal(loaded.dequantize(), one.dequantize())


@quantized
def test_quantized_per_channel_is_said_literally() -> None:
    state, sources = write({"/q": quantize("per_channel")})
    assert state["/q"] == {
        "$quantized": {
            "dtype": "qint8",
            "scheme": "per_channel_affine",
            "data": {"$tensor": "/q/data"},
            "scale": {"$tensor": "/q/scale"},
            "zero_point": {"$tensor": "/q/zero_point"},
            "axis": 0,
        }
    }
    assert records(sources) == [
        ("/q/data", "int8", (3, 4)),
        ("/q/scale", "float64", (3,)),
        ("/q/zero_point", "int64", (3,)),
    ]


@quantized
def test_quantized_with_a_scale_that_is_not_finite() -> None:
    tensor = torch.quantize_per_tensor(torch.zeros(2), float("inf"), 0, torch.qint32)
    state, sources = write({"/q": tensor})
    body = state["/q"]
    assert isinstance(body, dict)
    assert isinstance(body["$quantized"], dict)
    assert body["$quantized"]["scale"] == {"$float": "Infinity"}
    assert read(state, sources)["/q"].q_scale() == float("inf")


@quantized
def test_packed_quantized_dtypes_are_refused() -> None:
    with pytest.raises(UnsupportedTypeError, match=r"tensor '/q'.*quint4x2.*dequantize"):
        write({"/q": quantize("quint4x2")})


# --- what cannot be written -----------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


def freed() -> torch.Tensor:
    tensor = torch.zeros(4)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_cannot_be_written_say_why() -> None:
    cases: dict[str, Any] = {
        r"meta device has no data": torch.zeros(2, device="meta"),
        r"test_sharing\.Subclass\. Call jsonckpt\.register\(Subclass": torch.zeros(2).as_subclass(
            Subclass
        ),
        r"UninitializedParameter has no shape": torch.nn.UninitializedParameter(),
        r"UninitializedBuffer has no shape": torch.nn.UninitializedBuffer(),
        r"layout nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        r"layout _mkldnn\. Save value\.to_dense": torch.ones(2).to_mkldnn(),
        r"65 dimensions": torch.zeros((1,) * 65),
        r"needs 16 bytes of memory, but its storage has 0": freed(),
    }
    for message, tensor in cases.items():
        with pytest.raises(UnsupportedTypeError, match=rf"tensor '/x': .*{message}"):
            StateWriter().put(tensor, "/x")


# --- hostile and incomplete files -----------------------------------------------------------


def test_what_was_not_chosen_is_omitted() -> None:
    loaded = {"/a": torch.zeros(6), "/s/values": torch.zeros(1)}
    with pytest.raises(FormatError, match=r"state '/c/\$tensor': there is no record '/c'"):
        StateReader(loaded, {"/c"}).get("$tensor", "/c", "/c")
    reader = StateReader(loaded, {"/a", "/s/values"})
    tensor: Json = {"$tensor": "/b"}
    assert reader.get("$tensor", "/b", "/b") is OMIT
    assert reader.get("$parameter", {"data": tensor, "requires_grad": True}, "/b") is OMIT
    assert reader.get("$requires_grad", tensor, "/b") is OMIT
    assert reader.get("$view", view("/v", "/a", "float32", [1], [1], 0)["$view"], "/v") is OMIT
    assert reader.get_array(tensor, "/b") is OMIT
    sparse: Json = {
        "layout": "coo",
        "shape": [3],
        "indices": {"$tensor": "/s/indices"},
        "values": {"$tensor": "/s/values"},
        "coalesced": True,
    }
    assert reader.get("$sparse", sparse, "/s") is OMIT
    scale: dict[str, Json] = {"scale": 0.5, "zero_point": 0}
    one: Json = {"dtype": "qint8", "scheme": "per_tensor_affine", "data": tensor, **scale}
    assert reader.get("$quantized", one, "/q") is OMIT


def good_view(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"name": "/v", "of": "/a", "dtype": "float32"}
    return {**body, "shape": [2, 2], "stride": [3, 1], "offset": 1, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 2}, r"state '/v/\$view': the view ends at byte 28 of a record of 24 bytes"),
        ({"offset": -1}, r"'/v/\$view/offset': expected an integer from 0 .*, found '-1'"),
        ({"offset": 1.0}, "offset"),
        ({"offset": True}, "offset"),
        ({"offset": 2**63}, "offset"),
        ({"stride": [3]}, "expected 2 integers"),
        ({"stride": [-3, 1]}, "stride"),
        ({"stride": [2**62, 1]}, "ends at byte"),
        ({"shape": [2**40, 2**40], "stride": [0, 0]}, "2\\^63 bytes"),
        ({"shape": [2, "2"]}, "shape"),
        ({"shape": None}, "shape"),
        ({"shape": [1] * 65, "stride": [0] * 65}, "at most 64"),
        ({"dtype": "float99"}, "dtype"),
        ({"dtype": "complex128"}, "ends at byte"),
        ({"of": "/gone"}, "there is no record '/gone'"),
        ({"of": 1}, "/of': expected a string"),
        ({"name": None}, "/name': expected a string"),
        ({"dtype": "bool", "shape": [24], "stride": [1], "offset": 0}, "neither 0 nor 1"),
        (
            {"dtype": "bool", "shape": [2**40, 2**20], "stride": [0, 0], "offset": 6},
            "neither 0 nor 1",
        ),
        ({"shape": [2**62, 2**62, 0], "stride": [0, 0, 0]}, "torch has no view"),
    ],
)
def test_views_that_lie(changes: dict[str, Any], message: str) -> None:
    reader = StateReader({"/a": torch.ones(6)}, {"/v", "/a"})
    with pytest.raises(FormatError, match=message):
        reader.get("$view", good_view(**changes), "/v")


def test_views_at_the_edges_of_what_is_allowed() -> None:
    reader = StateReader({"/a": torch.arange(6.0)}, {"/v", "/w", "/x", "/y"})
    assert reader.get("$view", good_view(), "/v").tolist() == [[1, 2], [4, 5]]
    huge = good_view(name="/w", shape=[2**60], stride=[0], offset=5)
    assert reader.get("$view", huge, "/w")[2**59] == 5
    empty = good_view(name="/x", shape=[0, 3], stride=[2**62, 2**62], offset=2**62)
    assert reader.get("$view", empty, "/x").shape == (0, 3)
    single = good_view(name="/y", shape=[1], stride=[2**63 - 1], offset=5)
    assert reader.get("$view", single, "/y").tolist() == [5]


def test_one_name_cannot_be_two_views() -> None:
    reader = StateReader({"/a": torch.ones(6)}, {"/v"})
    first = reader.get("$view", good_view(), "/v")
    assert reader.get("$view", good_view(comment="ignored"), "/u") is first
    with pytest.raises(FormatError, match="another view is called '/v'"):
        reader.get("$view", good_view(offset=0), "/u")


LOADED = {
    "/f": torch.ones(3),
    "/i": torch.ones(3, dtype=torch.int64),
    "/i8": torch.ones(3, dtype=torch.int8),
    "/f64": torch.ones(3, dtype=torch.float64),
    "/bad": torch.tensor([[0, 99, 1]]),
    "/unsorted": torch.tensor([[2, 1, 0]]),
    "/row": torch.tensor([0, 1, 3]),
    "/col": torch.tensor([0, 1, 77]),
}


def ref(name: str) -> Json:
    return {"$tensor": name}


def coo(**changes: Any) -> Json:
    body = {"layout": "coo", "shape": [3], "indices": ref("/unsorted"), "values": ref("/f")}
    return {**body, "coalesced": False, **changes}


def csr(**changes: Any) -> Json:
    body = {"layout": "csr", "shape": [2, 3], "compressed": ref("/row"), "plain": ref("/i")}
    return {**body, "values": ref("/f"), **changes}


def per_tensor(**changes: Any) -> Json:
    body = {"dtype": "qint8", "scheme": "per_tensor_affine", "data": ref("/i8")}
    return {**body, "scale": 0.5, "zero_point": 0, **changes}


def per_channel(**changes: Any) -> Json:
    body = {"dtype": "qint8", "scheme": "per_channel_affine", "data": ref("/i8")}
    return {**body, "scale": ref("/f64"), "zero_point": ref("/i"), "axis": 0, **changes}


@pytest.mark.parametrize(
    ("tag", "body", "message"),
    [
        ("$tensor", 1, "expected a name"),
        ("$view", [], "expected an object"),
        ("$what", {}, "'\\$what' is not a tensor"),
        ("$parameter", [], "expected an object"),
        ("$parameter", {"data": ref("/f")}, "requires_grad': expected true or false"),
        ("$parameter", {"data": ref("/i"), "requires_grad": True}, "int64 cannot require"),
        ("$parameter", {"requires_grad": True}, "expected a tensor"),
        ("$requires_grad", ref("/i"), "int64 cannot require"),
        ("$requires_grad", {"$requires_grad": ref("/f")}, "expected a dense tensor"),
        ("$requires_grad", {"a": 1, "b": 2}, "expected a tensor"),
        ("$sparse", "coo", "expected an object"),
        ("$sparse", coo(layout="dense"), "layout': expected one of coo, csr"),
        ("$sparse", coo(shape=[-1]), "shape"),
        ("$sparse", coo(shape=[2]), "torch cannot put the parts together"),
        ("$sparse", coo(shape=[2**62, 2**62]), "torch cannot"),
        ("$sparse", coo(indices=ref("/bad")), "torch cannot"),
        ("$sparse", coo(indices=ref("/f")), "torch cannot"),
        ("$sparse", coo(coalesced=True), "torch cannot.*coalesced"),
        ("$sparse", coo(coalesced=1), "coalesced': expected true or false"),
        ("$sparse", coo(values={"$sparse": {}}), "expected a dense tensor"),
        ("$sparse", coo(values=None), "expected a tensor"),
        ("$sparse", csr(plain=ref("/col")), "torch cannot"),
        ("$sparse", csr(compressed=ref("/col")), "torch cannot"),
        ("$sparse", csr(shape=[2]), "torch cannot"),
        ("$quantized", [], "expected an object"),
        ("$quantized", per_tensor(dtype="quint4x2"), "dtype': expected one of quint8"),
        ("$quantized", per_tensor(scheme="none"), "scheme': expected one of"),
        ("$quantized", per_tensor(data=ref("/f")), "expected a tensor of torch.int8"),
        ("$quantized", per_tensor(scale="1"), "scale': expected a number"),
        ("$quantized", per_tensor(scale=True), "scale': expected a number"),
        ("$quantized", per_tensor(scale={"$float": "x"}), "scale': expected a number"),
        ("$quantized", per_tensor(zero_point=2**31), "zero_point': expected an integer"),
        ("$quantized", per_channel(axis=1), "axis': expected one of 1 dimensions"),
        ("$quantized", per_channel(scale=ref("/f")), "scale': expected a tensor of torch.float64"),
        ("$quantized", per_channel(zero_point=ref("/unsorted")), "expected 3 channels"),
    ],
)
def test_tensors_that_lie(tag: str, body: Json, message: str) -> None:
    with pytest.raises(FormatError, match=f"state '/x.*{message}"):
        StateReader(LOADED, LOADED).get(tag, body, "/x")


def test_the_bodies_above_are_good_but_for_the_change() -> None:
    reader = StateReader({**LOADED, "/i": torch.tensor([0, 0, 1])}, LOADED)
    assert reader.get("$sparse", coo(), "/x").to_dense().tolist() == [1, 1, 1]
    assert reader.get("$sparse", csr(plain=ref("/i")), "/x").layout == torch.sparse_csr
    assert reader.get("$quantized", per_tensor(scale=2), "/x").q_scale() == 2
    assert reader.get("$quantized", per_channel(), "/x").q_per_channel_axis() == 0


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
