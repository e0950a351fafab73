"""Shapes, dtypes, chunk sizes and codecs that do not fit, with checksums that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonckpt import FormatError, JsonckptError, LimitError, UnsupportedVersionError
from tests.hostile.cases import Case, Cases, check
from tests.hostile.forge import Forgery, Raw, Record
from tests.hostile.runner import Child

CASES = Cases()
EITHER = (FormatError, LimitError)
#: Ways in that put nothing on the device of a record.
DEVICE = ("verify", "load_into")


def _shape(value: Any, name: str, expects: Any = FormatError, says: str = "shape") -> None:
    @CASES.add(expects, says, name=name)
    def _(forgery: Forgery) -> None:
        forgery["/w"].members["shape"] = value


_shape([-3, -4], "negative_sizes")
_shape([-1, 4], "negative_size")
_shape([2**60], "enormous_size", EITHER, "shape|chunks")
_shape([2**63], "size_over_int64")
_shape([2**63 - 1, 2**63 - 1], "enormous_product", LimitError)
_shape([True, 12], "bool_size")
_shape([3.0, 4], "float_size")
_shape([Raw(b"3e0"), 4], "exponent_size")
_shape(["3", 4], "string_size")
_shape([None, 4], "null_size")
_shape([[3], 4], "nested_size")
_shape([{"size": 3}, 4], "object_size")
_shape(12, "shape_is_a_number")
_shape({}, "shape_is_an_object")
_shape(None, "shape_is_null")
_shape([1] * 63 + [3, 4], "too_many_dimensions", LimitError, "65 dimensions")
_shape([3, 5], "larger_shape_than_bytes", FormatError, "4 chunks|has 4|shape asks for")
_shape([3, 3], "smaller_shape_than_bytes", FormatError, "base64|characters|bytes")
_shape([1], "one_chunk_too_many", FormatError, "chunk")


@CASES.add(LimitError, "elements|2\\^63")
def enormous_sizes_hidden_by_a_zero(forgery: Forgery) -> None:
    record = forgery["/e"]
    record.members["shape"] = [2**62, 2**62, 0]


@CASES.add(EITHER, "no memory|torch has no|chunks|shape|bytes of tensors")
def two_hundred_terabytes_in_one_chunk_each(forgery: Forgery) -> None:
    forgery["/w"].members["shape"] = [2**45]
    forgery["/w"].members["chunk_bytes"] = 64 << 20


def _member(
    member: str, value: Any, name: str, expects: Any, says: str, blind: tuple[str, ...] = ()
) -> None:
    @CASES.add(expects, says, name=name, blind=blind)
    def _(forgery: Forgery) -> None:
        forgery["/w"].members[member] = value


_member("dtype", "float128", "unknown_dtype", FormatError, "unknown dtype 'float128'")
_member("dtype", "torch.float32", "dtype_with_prefix", FormatError, "unknown dtype")
_member("dtype", 5, "dtype_is_a_number", FormatError, "unknown dtype")
_member("dtype", ["float32"], "dtype_is_an_array", FormatError, "unknown dtype")
_member("dtype", "float64", "dtype_of_other_size", FormatError, "chunks|shape asks for")
_member("device", "cuda:999", "no_such_device", JsonckptError, "cuda:999", DEVICE)
_member("device", "meta", "device_meta", FormatError, "meta", DEVICE)
_member("device", "__import__('os')", "device_is_code", FormatError, "device")
_member("device", 0, "device_is_a_number", FormatError, "device")
_member("stride", 4, "stride_is_a_number", FormatError, "stride")
_member("stride", [4], "stride_of_another_rank", FormatError, "stride")
_member("stride", [4, -1], "negative_stride", FormatError, "stride")
_member("stride", [0, 1], "stride_of_nothing", FormatError, "stride")
_member("stride", [2, 1], "stride_that_overlaps", FormatError, "stride")
_member("stride", [8, 2], "stride_with_gaps", FormatError, "stride")
_member("stride", [2**62, 1], "enormous_stride", FormatError, "stride")
_member("stride", [1, 3], "stride_under_a_view", FormatError, "is not laid out as a view")
_member("storage", 0, "storage_is_a_number", FormatError, "storage")
_member("storage", [0, 0], "storage_without_a_size", FormatError, "storage")
_member("storage", [0, 2, 64], "storage_that_is_not_aligned", FormatError, "storage")
_member("storage", [0, 32, 64], "storage_that_ends_too_early", FormatError, "storage")
_member("storage", [0, -4, 64], "storage_from_before_its_beginning", FormatError, "storage")
_member("storage", [0, 0, 2**63], "enormous_storage", FormatError, "storage")
_member("storage", [0, 0, 2**50], "terabytes_of_storage", LimitError, "limit|no memory")
_member("encoding", "hex", "unknown_encoding", FormatError, "unknown encoding 'hex'")
_member("encoding", None, "encoding_is_null", FormatError, "encoding")
_member("encoding", ["base64"], "encoding_is_an_array", FormatError, "encoding")
_member("compression", "lzma", "unknown_compression", FormatError, "unknown compression 'lzma'")
_member("compression", {}, "compression_is_an_object", FormatError, "compression")
_member("filter", "delta", "unknown_filter", FormatError, "unknown filter 'delta'")
_member("filter", 0, "filter_is_a_number", FormatError, "filter")
_member("chunk_bytes", 0, "chunks_of_nothing", FormatError, "chunk_bytes")
_member("chunk_bytes", -16, "chunks_of_less_than_nothing", FormatError, "chunk_bytes")
_member("chunk_bytes", 18, "chunks_of_parts_of_elements", FormatError, "multiple")
_member("chunk_bytes", True, "chunk_bytes_is_a_bool", FormatError, "chunk_bytes")
_member("chunk_bytes", 16.0, "chunk_bytes_is_a_float", FormatError, "chunk_bytes")
_member("chunk_bytes", "16", "chunk_bytes_is_a_string", FormatError, "chunk_bytes")
_member("chunk_bytes", 2**70, "chunks_of_enormous_size", LimitError, "chunk_bytes|limit")
_member("chunk_bytes", (64 << 20) + 4, "chunks_over_the_limit", LimitError, "chunk_bytes|limit")
_member("name", "w", "name_is_no_pointer", FormatError, "name")
_member("name", 7, "name_is_a_number", FormatError, "name")
_member("name", "/\0w", "name_with_nul", FormatError, "control")
_member("name", "/\x1b[31mw", "name_with_escape", FormatError, "control")
_member("name", "/\x7f", "name_with_delete", FormatError, "control")
_member("name", Raw(b'"/\\u0000"'), "name_with_escaped_nul", FormatError, "control")
_member("name", "/" + "é" * 600, "name_of_1201_bytes", LimitError, "1024")
_member("requires", ["sparse2"], "record_requires", UnsupportedVersionError, "sparse2")
_member("requires", "sparse2", "record_requires_a_string", FormatError, "requires")
_member("requires", [{}], "record_requires_an_object", FormatError, "requires")


@CASES.add(FormatError, "storage")
def storages_that_overlap(forgery: Forgery) -> None:
    forgery["/w"].members["storage"] = [3, 0, 96]
    forgery["/h"].members["storage"] = [3, 46, 96]


@CASES.add(FormatError, "storage")
def storages_of_two_sizes(forgery: Forgery) -> None:
    forgery["/w"].members["storage"] = [3, 0, 96]
    forgery["/h"].members["storage"] = [3, 48, 97]


@CASES.add(FormatError, "storage")
def a_storage_of_nothing(forgery: Forgery) -> None:
    forgery["/e"].members["storage"] = [3, 0, 96]


@CASES.add(FormatError, "list goes with")
def list_with_compression(forgery: Forgery) -> None:
    forgery["/l"].members["compression"] = "zstd"


@CASES.add(FormatError, "list goes with")
def list_with_filter(forgery: Forgery) -> None:
    forgery["/l"].members["filter"] = "shuffle"


def _without(member: str) -> None:
    @CASES.add(FormatError, member, name=f"without_{member}")
    def _(forgery: Forgery) -> None:
        del forgery["/w"].members[member]


for _name in ("name", "dtype", "shape", "encoding", "compression", "filter", "chunk_bytes"):
    _without(_name)


@CASES.add(FormatError, "twice")
def two_records_of_one_name(forgery: Forgery) -> None:
    forgery["/h"].members["name"] = "/w"


# From a pipe, whose size nobody knows, the limit is met only while the zeros come.
@CASES.add(
    LimitError,
    "limit",
    forms=("directory", "single", "zst"),
    limits={"total_floor": 100 << 20},
    growth=300 << 20,
)
def zeros_over_the_total_limit(forgery: Forgery) -> None:
    # 1.25 GiB in 160 KB of text: real frames, so that only the limit stands in the way.
    chunk = bytes(64 << 20)
    record = Record.of("/z", "uint8", [0], b"", compression="zstd", chunk_bytes=len(chunk))
    record.fill(chunk)
    record.members["shape"] = [20 * len(chunk)]
    record.payloads *= 20
    record.sums *= 20
    forgery.records.insert(0, record)
    forgery.state["z"] = {"$tensor": "/z"}


@CASES.add(LimitError, "limit|memory", forms=("directory",))
def shard_sizes_that_lift_the_total_limit(forgery: Forgery) -> None:
    record = Record.of("/z", "uint8", [64], bytes(64), compression="zstd", chunk_bytes=64 << 20)
    record.members["shape"] = [1 << 35]
    record.payloads *= 512
    record.sums *= 512
    forgery.records.append(record)
    record.shard = 1
    forgery.state["z"] = {"$tensor": "/z"}

    def edit(manifest: dict[str, Any]) -> None:
        manifest["shards"][1]["bytes"] = manifest["shards"][1]["text_bytes"] = 2**60

    forgery.edit_manifest = edit


def test_unforged_loads(child: Child, tmp_path: Path) -> None:
    """The forger's own checkpoint is good: what is refused above is refused for its lie."""
    from tests.hostile.cases import FORMS, doors_of, write
    from tests.hostile.forge import good

    for form in FORMS:
        for algorithm in ("xxh3_128", "sha256"):
            directory = tmp_path / f"{form}-{algorithm}"
            directory.mkdir()
            path = write(good(algorithm), form, directory)
            for door in doors_of(path):
                outcome = child.ask(path, door)
                assert not outcome.error, f"{form} {door}: {outcome.message}"
                assert not outcome.events


@CASES.parameters()
def test_refused(case: Case, form: str, child: Child, tmp_path: Path) -> None:
    check(case, form, child, tmp_path)
