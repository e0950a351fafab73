"""States that refer to what is not there, or ask for what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonckpt import FormatError, JsonckptError, UnsupportedVersionError
from tests.hostile.cases import Case, Cases, check
from tests.hostile.forge import Forgery, Members
from tests.hostile.runner import Child

CASES = Cases()
#: Ways in that do not come across the state, or not across all of it.
STATELESS = ("verify", "stream", "open", "load_into")


def _value(
    name: str, value: Any, says: str = "", expects: Any = FormatError, stateless: bool = False
) -> None:
    """A value in the state under the key ``x``."""

    @CASES.add(expects, says, name=name, blind=STATELESS if stateless else ())
    def _(forgery: Forgery) -> None:
        forgery.state["x"] = value


_value("tensor_that_is_not_there", {"$tensor": "/nowhere"}, "'/nowhere'")
_value("tensor_of_no_name", {"$tensor": None}, "name")
_value("tensor_named_by_a_number", {"$tensor": 5}, "name")
_value("tensor_named_by_an_object", {"$tensor": {"name": "/w"}}, "name")
_value("tensor_named_by_an_array", {"$tensor": ["/w"]}, "name")
_value("parameter_of_nothing", {"$parameter": {}}, "", stateless=True)
_value("parameter_of_a_number", {"$parameter": {"data": 5, "requires_grad": True}}, "tensor",
       stateless=True)  # fmt: skip
_value(
    "parameter_of_integers",
    {"$parameter": {"data": {"$tensor": "/i"}, "requires_grad": True}},
    "int64",
    stateless=True,
)
_value("requires_grad_of_bools", {"$requires_grad": {"$tensor": "/mask"}}, "bool", stateless=True)
_value("requires_grad_of_itself", {"$requires_grad": {"$requires_grad": {"$tensor": "/w"}}},
       "", stateless=True)  # fmt: skip

VIEW = {
    "name": "/x", "of": "/w", "dtype": "float32", "shape": [4], "stride": [1], "offset": 4,
}  # fmt: skip


def _view(test: str, says: str = "", drop: str = "", /, **changes: Any) -> None:
    body = {key: value for key, value in (VIEW | changes).items() if key != drop}
    _value(f"view_{test}", {"$view": body}, says)


_view("out_of_bounds", "byte", offset=9)
_view("far_out_of_bounds", "byte", offset=2**62)
_view("with_a_stride_out_of_bounds", "byte", stride=[4])
_view("with_an_enormous_stride", "byte", stride=[2**62], offset=0)
_view("with_an_enormous_shape", "byte|shape", shape=[2**62], stride=[1], offset=0)
_view("with_an_enormous_shape_in_one_place", "", shape=[2**62, 4], stride=[0, 1], offset=0)
_view("with_sizes_beyond_64_bits", "", shape=[2**62, 2**62], stride=[0, 0], offset=0)
_view("with_sizes_beyond_64_bits_and_zero", "", shape=[2**62, 2**62, 0], stride=[1, 1, 1])
_view("with_a_negative_offset", "offset", offset=-1)
_view("with_a_negative_stride", "stride", stride=[-1])
_view("with_a_negative_size", "shape", shape=[-4])
_view("with_a_bool_size", "shape", shape=[True])
_view("with_a_float_offset", "offset", offset=4.0)
_view("with_a_float_stride", "stride", stride=[1.0])
_view("with_fewer_strides", "stride", stride=[])
_view("with_more_strides", "stride", stride=[1, 1])
_view("with_an_unknown_dtype", "dtype", dtype="float128")
_view("with_a_dtype_that_is_a_number", "dtype", dtype=4)
_view("of_a_larger_dtype", "byte", dtype="complex128", shape=[4])
_view("of_nothing", "'/nowhere'", of="/nowhere")
_view("of_a_number", "of", of=5)
_view("of_an_array", "of", of=["/w"])
_view("of_an_object", "of", of={})
_view("without_of", "of", "of")
_view("without_name", "name", "name")
_view("without_dtype", "dtype", "dtype")
_view("without_shape", "shape", "shape")
_view("without_stride", "stride", "stride")
_view("without_offset", "offset", "offset")
_view("named_by_a_number", "name", name=5)
_view("of_the_name_of_another", "two things|'/row'", name="/row", offset=0)
_view("with_65_dimensions", "64", shape=[1] * 65, stride=[1] * 65)
_value("view_that_is_null", {"$view": None}, "")
_value("view_that_is_a_name", {"$view": "/w"}, "")
_value("view_that_is_an_array", {"$view": ["/w"]}, "")
_value("view_beside_another_member", {"$view": VIEW, "y": {"$tensor": "/nowhere"}}, "'/nowhere'")
_value("view_of_half_a_size", {"$view": VIEW | {"shape": [0.5]}}, "shape")

COO = {"layout": "coo", "shape": [9], "coalesced": False}
_value(
    "sparse_with_indices_out_of_bounds",
    {"$sparse": COO | {"indices": {"$tensor": "/i"}, "values": {"$tensor": "/l"}}},
    "",
    stateless=True,
)
_value(
    "sparse_of_enormous_shape",
    {"$sparse": COO | {"shape": [2**62] * 3, "indices": {"$tensor": "/i"},
                       "values": {"$tensor": "/w"}}},
    "",
    stateless=True,
)  # fmt: skip
_value("sparse_of_an_unknown_layout", {"$sparse": COO | {"layout": "dok"}}, "layout",
       stateless=True)  # fmt: skip
_value(
    "quantized_of_floats",
    {"$quantized": {"dtype": "qint8", "scheme": "per_tensor_affine", "data": {"$tensor": "/w"},
                    "scale": 0.5, "zero_point": 0, "axis": 0}},
    "int8",
    stateless=True,
)  # fmt: skip
_value("ndarray_of_another_shape",
       {"$ndarray": {"dtype": "<f4", "shape": [5, 5], "data": {"$tensor": "/w"}}}, "",
       stateless=True)  # fmt: skip
_value("ndarray_of_objects",
       {"$ndarray": {"dtype": "|O", "shape": [3], "data": {"$tensor": "/i"}}}, "dtype",
       stateless=True)  # fmt: skip

_value("unknown_tag", {"$pickle": "gASVCAAAAAAAAACMBHRlc3SULg=="}, "unknown tag '\\$pickle'",
       stateless=True)  # fmt: skip
_value("tag_of_a_module", {"$os.system": "true"}, "unknown tag", stateless=True)
_value("tag_of_nothing", {"$": 1}, "unknown tag", stateless=True)
_value("unhashable_key", {"$dict": [[[], 1]]}, "key", stateless=True)
_value("key_twice", {"$dict": [[1, 1], [True, 1]]}, "duplicate", stateless=True)
_value("keys_of_one_hash", {"$dict": [[k * (2**61 - 1), 0] for k in range(3000)]}, "hash",
       stateless=True)  # fmt: skip


@CASES.add(FormatError, "state|object|tensor|expected", name="state_is_a_tag_of_no_kind",
           blind=STATELESS)  # fmt: skip
def _root(forgery: Forgery) -> None:
    forgery.single["state"] = {"$nothing": 1}


@CASES.add(FormatError, "twice")
def state_with_a_member_twice(forgery: Forgery) -> None:
    forgery.single["state"] = Members([*forgery.state.items(), ("epoch", 4)])


# --- versions and features ----------------------------------------------------------------------


def _head(name: str, member: str, value: Any, says: str, expects: Any = FormatError) -> None:
    """A member of the head of a shard or single file; the manifest stays."""

    @CASES.add(expects, says, name=f"head_{name}")
    def _(forgery: Forgery) -> None:
        def edit(head: Any) -> None:
            head[member] = value

        forgery.edit_head = edit


def _manifest(name: str, member: str, value: Any, says: str, expects: Any = FormatError) -> None:
    """A member of the manifest; the shards stay."""

    @CASES.add(expects, says, name=f"manifest_{name}", forms=("directory",))
    def _(forgery: Forgery) -> None:
        def edit(manifest: Any) -> None:
            manifest[member] = value

        forgery.edit_manifest = edit


for _where in (_head, _manifest):
    _where("of_version_2", "version", 2, "version 2|version '2'", UnsupportedVersionError)
    _where("of_version_2_60", "version", 2**60, "version", UnsupportedVersionError)
    _where("of_version_0", "version", 0, "version")
    _where("of_negative_version", "version", -1, "version")
    _where("of_version_true", "version", True, "version")
    _where("of_version_1_0", "version", 1.0, "version")
    _where("of_version_string", "version", "1", "version")
    _where("of_version_null", "version", None, "version")
    _where("requires", "requires", ["zstd-long"], "'zstd-long'", UnsupportedVersionError)
    _where("requires_many", "requires", ["a"] * 1000, "'a'", UnsupportedVersionError)
    _where("requires_a_string", "requires", "a", "requires")
    _where("requires_a_number", "requires", [1], "requires")
    _where("requires_null", "requires", None, "requires")
    _where("of_another_format", "format", "safetensors", "format is 'safetensors'")
    _where("of_format_null", "format", None, "format")
    _where("of_format_array", "format", ["jsonckpt.shard"], "format")
    _where("of_unknown_checksum", "checksum", "crc32", "checksum is 'crc32'")
    _where("of_checksum_null", "checksum", None, "checksum")
    _where("of_blake3", "checksum", "blake3", "", JsonckptError)
    _where("of_save_id_null", "save_id", None, "save_id")
    _where("of_short_save_id", "save_id", "ab", "save_id")


@CASES.add(FormatError, "belongs to the save|save", forms=("directory",))
def shards_of_another_save(forgery: Forgery) -> None:
    def edit(head: Any) -> None:
        head["save_id"] = "ab" * 16

    forgery.edit_head = edit


@CASES.parameters()
def test_refused(case: Case, form: str, child: Child, tmp_path: Path) -> None:
    check(case, form, child, tmp_path)
