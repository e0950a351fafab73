"""Byte ranges in the manifest, and indexes of shards, that lie about where things are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonckpt import FormatError, IncompleteCheckpointError, IntegrityError, LimitError
from tests.hostile.cases import MOST_GROWTH, Case, Cases, check
from tests.hostile.forge import Forgery, Raw, Record, dumps
from tests.hostile.runner import Child

CASES = Cases()
DIRECTORY = ("directory",)

# --- the manifest -------------------------------------------------------------------------------


def _tensors(
    name: str, edit: Callable[[list[Any]], Any], says: str, expects: Any = FormatError
) -> None:
    """A lie in the member ``tensors`` of the manifest."""

    @CASES.add(expects, says, forms=DIRECTORY, name=name)
    def _(forgery: Forgery) -> None:
        def change(manifest: dict[str, Any]) -> None:
            changed = edit(manifest["tensors"])
            manifest["tensors"] = manifest["tensors"] if changed is None else changed

        forgery.edit_manifest = change


def _add(entry: Any, key: Any, amount: int) -> None:
    entry[key] += amount


def _set(entry: Any, key: Any, value: Any) -> None:
    entry[key] = value


def _same_bytes(entries: list[Any]) -> None:
    entries[1]["offset"], entries[1]["length"] = entries[0]["offset"], entries[0]["length"]


RANGE = "overlap|gap|range|begins at"
_tensors("records_overlap", lambda e: _add(e[1], "offset", -1), RANGE)
_tensors("record_with_a_gap_before", lambda e: _add(e[1], "offset", 1), RANGE)
_tensors("record_too_short", lambda e: _add(e[0], "length", -1), RANGE)
_tensors("record_too_long", lambda e: _add(e[0], "length", 1), RANGE)
_tensors("first_record_too_early", lambda e: _add(e[0], "offset", -1), RANGE + "|head of a record")
_tensors("first_record_too_late", lambda e: _add(e[0], "offset", 1), RANGE)
_tensors("records_in_one_place", _same_bytes, RANGE)
_tensors("records_in_another_order", lambda e: [e[1], e[0], *e[2:]], RANGE)
_tensors("shards_in_another_order", lambda e: [*e[3:], *e[:3]], "order of the shards")
_tensors("record_beyond_the_end", lambda e: _set(e[-1], "offset", 2**40), "ends at|gap|range")
_tensors("record_far_beyond_the_end", lambda e: _set(e[-1], "offset", 2**63 - 1), "ends at|gap")
_tensors("offset_over_int64", lambda e: _set(e[0], "offset", 2**63), "integers")
_tensors("negative_offset", lambda e: _set(e[0], "offset", -1), "integers")
_tensors("float_offset", lambda e: _set(e[0], "offset", 10.0), "integers")
_tensors("bool_offset", lambda e: _set(e[0], "offset", True), "integers")
_tensors("string_length", lambda e: _set(e[0], "length", "10"), "integers")
_tensors("negative_length", lambda e: _set(e[0], "length", -10), "integers")
_tensors("length_of_nothing", lambda e: _set(e[0], "length", 0), RANGE)
_tensors("chunk_too_early", lambda e: _add(e[0]["chunks"][1], 0, -1), RANGE)
_tensors("chunk_too_late", lambda e: _add(e[0]["chunks"][1], 0, 1), RANGE)
_tensors("chunk_too_short", lambda e: _add(e[0]["chunks"][0], 1, -4), RANGE)
_tensors("last_chunk_too_short", lambda e: _add(e[0]["chunks"][-1], 1, -4), "chunk|line")
_tensors("chunk_too_long", lambda e: _add(e[0]["chunks"][0], 1, 4), "chunk 0")
_tensors("last_chunk_too_long", lambda e: _add(e[0]["chunks"][-1], 1, 4), "chunk")
_tensors("chunk_of_negative_length", lambda e: _set(e[0]["chunks"][0], 1, -24), "chunk")
_tensors("chunk_with_a_float", lambda e: _set(e[0]["chunks"][0], 0, 1.5), "chunk")
_tensors("chunk_with_a_bool", lambda e: _set(e[0]["chunks"][0], 1, True), "chunk")
_tensors("chunk_without_checksum", lambda e: e[0]["chunks"][0].pop(), "chunk")
_tensors("chunk_with_two_checksums", lambda e: e[0]["chunks"][0].append("00" * 16), "chunk")
_tensors("chunk_is_an_object", lambda e: _set(e[0]["chunks"], 0, {}), "chunk")
_tensors("chunk_is_null", lambda e: _set(e[0]["chunks"], 0, None), "chunk")
_tensors("checksum_with_capitals", lambda e: _set(e[0]["chunks"][0], 2, "AB" * 16), "chunk")
_tensors("checksum_too_short", lambda e: _set(e[0]["chunks"][0], 2, "ab" * 15), "chunk")
_tensors("checksum_is_a_number", lambda e: _set(e[0]["chunks"][0], 2, 5), "chunk")
_tensors("chunks_are_null", lambda e: _set(e[0], "chunks", None), "chunks")
_tensors("chunk_missing", lambda e: e[0]["chunks"].pop() and None, "found 2 chunks")
_tensors("chunk_doubled", lambda e: e[0]["chunks"].append(e[0]["chunks"][-1]), "found 4 chunks")
_tensors("chunks_swapped", lambda e: e[0]["chunks"].reverse(), RANGE)
_tensors("chunk_range_twice", lambda e: _set(e[0]["chunks"], 1, e[0]["chunks"][0]), RANGE)
_tensors("two_tensors_share_a_payload", lambda e: _set(e[1]["chunks"], 0, e[0]["chunks"][0]), RANGE)
_tensors("shard_that_is_not_there", lambda e: _set(e[0], "shard", 2), "shard is '2'")
_tensors("negative_shard", lambda e: _set(e[0], "shard", -1), "shard is '-1'")
_tensors("bool_shard", lambda e: _set(e[0], "shard", False), "shard is")
_tensors("float_shard", lambda e: _set(e[0], "shard", 0.0), "shard is")
_tensors("codec_that_is_not_there", lambda e: _set(e[0], "codec", 99), "codec is '99'")
_tensors("negative_codec", lambda e: _set(e[0], "codec", -1), "codec is '-1'")
_tensors("entry_is_null", lambda e: _set(e, 0, None), "object")
_tensors("entry_is_an_array", lambda e: _set(e, 0, []), "object")
_tensors("entry_missing", lambda e: e[:-1], "totals")
_tensors("entry_doubled", lambda e: [*e, e[-1]], "overlap|gap|twice")
_tensors("entries_are_an_object", lambda e: {"0": e[0]}, "array")
_tensors("other_dtype_than_the_shard", lambda e: _set(e[0], "dtype", "int32"), "dtype")
_tensors("other_shape_than_the_shard", lambda e: _set(e[0], "shape", [4, 3]), "shape")
_tensors("other_name_than_the_shard", lambda e: _set(e[-1], "name", "/other"), "name|refers")
_tensors("other_device_than_the_shard", lambda e: _set(e[0], "device", "cpu:0"), "device")
_tensors("other_checksum_than_the_shard", lambda e: _set(e[1]["chunks"][0], 2, "ab" * 16),
         "chunks|checksum", (FormatError, IntegrityError))  # fmt: skip
_tensors("entry_requires", lambda e: _set(e[0], "requires", ["deltas"]), "deltas")


@CASES.add(FormatError, "the manifest lacks", forms=DIRECTORY)
def entry_missing_with_totals_that_agree(forgery: Forgery) -> None:
    # The state does not need the last tensor, and the manifest does not know it: the shard does.
    del forgery.state["e"]

    def edit(manifest: dict[str, Any]) -> None:
        manifest["tensors"].pop()
        manifest["totals"]["tensors"] -= 1

    forgery.edit_manifest = edit


@CASES.add(FormatError, "line", blind=("load_into",), name="line_feed_in_a_payload_nobody_needs")
def _(forgery: Forgery) -> None:
    # The reader that knows the ranges does not decode it; the other one reads line by line.
    forgery.records.insert(0, record := Record.of("/spare", "uint8", [3], b"abc"))
    record.payloads[0] = b"YW\nj"


def _members(
    name: str, edit: Callable[[dict[str, Any]], Any], says: str, expects: Any = FormatError
) -> None:
    """A lie in the members of the manifest."""

    @CASES.add(expects, says, forms=DIRECTORY, name=name)
    def _(forgery: Forgery) -> None:
        def change(manifest: dict[str, Any]) -> None:
            edit(manifest)

        forgery.edit_manifest = change


def _shard(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: _set(manifest["shards"][0], key, value)


def _total(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: _set(manifest["totals"], key, value)


_members("shards_missing", lambda m: m.pop("shards"), "shards")
_members("shards_are_an_object", lambda m: _set(m, "shards", {}), "shards")
_members("shard_is_null", lambda m: _set(m["shards"], 0, None), "shards\\[0\\]")
_members("shard_twice", lambda m: _set(m["shards"], 1, m["shards"][0]), "twice")
_members("shard_of_other_size", _shard("bytes", 17), "17")


@CASES.add(IncompleteCheckpointError, "bytes", forms=("directory_zst",))
def compressed_shard_of_other_size(forgery: Forgery) -> None:
    forgery.edit_manifest = lambda manifest: _add(manifest["shards"][0], "bytes", 1)


@CASES.add(FormatError, "bytes", forms=("directory_zst",), blind=("load_into",))
def compressed_shard_that_nobody_needs_of_other_size(forgery: Forgery) -> None:
    for record in forgery.records:
        if record.shard == 1:
            del forgery.state[record.members["name"][1:]]
    forgery.edit_manifest = lambda manifest: _add(manifest["shards"][1], "bytes", -1)


_members("shard_of_bool_size", _shard("bytes", True), "integers")
_members("shard_of_float_size", _shard("bytes", 1e3), "integers")
_members("shard_of_negative_size", _shard("text_bytes", -1), "integers")
_members("shard_of_enormous_size", _shard("bytes", 2**64), "integers")
_members("shard_with_a_seal_of_another_kind", _shard("seal", "sha256:" + "ab" * 32), "seal")
_members("shard_with_another_seal", _shard("seal", "xxh3_128:" + "ab" * 16), "seal", IntegrityError)
_members("shard_without_seal", _shard("seal", None), "seal")
_members("codecs_missing", lambda m: m.pop("codecs"), "codecs")
_members("codecs_are_null", lambda m: _set(m, "codecs", None), "codecs")
_members("codec_is_null", lambda m: _set(m["codecs"], 0, None), "codecs\\[0\\]")
_members("tensors_missing", lambda m: m.pop("tensors"), "tensors")
_members("totals_missing", lambda m: m.pop("totals"), "totals")
_members("totals_are_null", lambda m: _set(m, "totals", None), "totals")
_members("totals_with_other_tensors", _total("tensors", 7), "totals")
_members("totals_with_other_bytes", _total("bytes", 147), "totals")
_members("totals_with_other_stored_bytes", _total("stored_bytes", 0), "totals")
_members("totals_with_other_shards", _total("shards", 1), "totals")
_members("totals_with_a_bool", _total("tensors", True), "totals")
_members("totals_with_a_float", _total("tensors", 6.0), "totals")
_members("state_missing", lambda m: m.pop("state"), "state")
_members("metadata_is_an_array", lambda m: _set(m, "metadata", []), "metadata")
_members("created_at_is_a_number", lambda m: _set(m, "created_at", 5), "created_at")
_members("created_by_is_missing", lambda m: m.pop("created_by"), "created_by")
_members("save_id_in_capitals", lambda m: _set(m, "save_id", "AB" * 16), "save_id")
_members("save_id_of_another_save", lambda m: _set(m, "save_id", "ab" * 16), "save")
_members("save_id_is_null", lambda m: _set(m, "save_id", None), "save_id")
_members("other_checksum_named", lambda m: _set(m, "checksum", "sha256"), "checksum|seal|chunk")
_members("unknown_checksum", lambda m: _set(m, "checksum", "md5"), "checksum")
_members("checksum_is_an_array", lambda m: _set(m, "checksum", ["xxh3_128"]), "checksum")

# --- the index of a shard -----------------------------------------------------------------------

WRONG_INDEX = (FormatError, LimitError, IntegrityError, IncompleteCheckpointError)


def _index(name: str, edit: Callable[[list[Any]], Any], says: str = "index|range|seal") -> None:
    """A lie in the index, under a seal that fits."""

    @CASES.add(WRONG_INDEX, says, name=f"index_{name}")
    def _(forgery: Forgery) -> None:
        forgery.edit_index = edit


_index("with_a_row_too_few", lambda rows: rows[:-1])
_index("with_a_row_too_many", lambda rows: [*rows, rows[-1]])
_index("of_nothing", lambda _: [])
_index("with_rows_swapped", lambda rows: rows[::-1])
_index("with_a_record_too_early", lambda rows: _add(rows[0], 0, -1))
_index("with_a_record_too_late", lambda rows: _add(rows[-1], 0, 1))
_index("with_a_record_too_long", lambda rows: _add(rows[0], 1, 1))
_index("with_a_chunk_too_early", lambda rows: _add(rows[0][2][0], 0, -1))
_index("with_a_chunk_too_late", lambda rows: _add(rows[0][2][0], 0, 1))
_index("with_a_chunk_too_long", lambda rows: _add(rows[0][2][0], 1, 4))
_index("with_a_chunk_too_short", lambda rows: _add(rows[0][2][0], 1, -4))
_index("with_a_chunk_of_nothing", lambda rows: _set(rows[0][2][0], 1, 0))
_index("with_a_chunk_missing", lambda rows: rows[0][2].pop() and None)
_index("with_a_chunk_doubled", lambda rows: rows[0][2].append(rows[0][2][-1]))
_index("with_chunks_swapped", lambda rows: rows[0][2].reverse())
_index("with_overlapping_chunks", lambda rows: _set(rows[0][2], 1, rows[0][2][0]))
_index("with_an_enormous_offset", lambda rows: _set(rows[0], 0, 2**70))
_index("with_an_enormous_payload", lambda rows: _set(rows[0][2][0], 1, 2**62))
_index("with_a_negative_offset", lambda rows: _set(rows[0], 0, -1))
_index("with_a_float", lambda rows: _set(rows[0], 0, 1.0))
_index("with_a_bool", lambda rows: _set(rows[0], 0, True))
_index("with_a_string", lambda rows: _set(rows[0], 0, "1"))
_index("with_null", lambda rows: _set(rows, 0, None))
_index("with_objects", lambda rows: _set(rows, 0, {"offset": 1}))
_index("with_deep_nesting", lambda _: Raw(b"[" * 150 + b"]" * 150))
_index("with_very_deep_nesting", lambda _: Raw(b"[" * 100_000 + b"]" * 100_000))
_index("that_is_an_object", lambda _: {})
_index("that_is_null", lambda _: None or Raw(b"null"))
_index("with_white_space", lambda rows: Raw(str(rows).encode()))
_index("that_swallows_a_record", lambda rows: _swallow(rows))


def _swallow(rows: list[Any]) -> list[Any]:
    """The first record's last payload reaches to the last record's."""
    if len(rows) < 3:
        return [rows[0]]
    start = rows[0][2][-1][0]
    last = next(row for row in reversed(rows) if row[2])
    stop = last[2][-1][0] + last[2][-1][1]
    rows[0][2][-1] = [start, stop - start]
    rows[0][1] = last[0] + last[1] - rows[0][0]
    return [rows[0], *rows[rows.index(last) + 1 :]]


def _trailer(
    name: str,
    edit: Callable[[bytes], bytes],
    says: str,
    expects: Any = WRONG_INDEX,
    growth: int = MOST_GROWTH,
) -> None:
    """Another last line of a shard."""

    @CASES.add(expects, says, name=f"trailer_{name}", growth=growth)
    def _(forgery: Forgery) -> None:
        forgery.edit_trailer = edit


def _offset(text: bytes) -> Callable[[bytes], bytes]:
    return lambda line: line[: line.rindex(b":") + 1] + text + b"}\n"


_trailer("without_index_offset", lambda line: line[: line.rindex(b",")] + b"}\n", "")
_trailer("with_index_offset_1", _offset(b"%20d" % 1), "index|seal|JSON")
_trailer("with_index_offset_beyond_the_end", _offset(b"%20d" % 10**15), "index|seal|bytes")
_trailer("with_index_offset_unpadded", _offset(b"366"), "")
_trailer("with_index_offset_of_zeros", _offset(b"%020d" % 366), "")
_trailer("with_negative_index_offset", _offset(b"%20d" % -366), "")
_trailer("with_a_space", lambda line: line.replace(b',"seal"', b', "seal"'), "")
_trailer("with_carriage_return", lambda line: line.replace(b"}\n", b"}\r\n"), "")
_trailer("without_line_feed", lambda line: line[:-1], "", IncompleteCheckpointError)
_trailer("with_two_line_feeds", lambda line: line + b"\n", "")
_trailer("with_a_nul_behind", lambda line: line + b"\0", "")
_trailer("with_another_line_behind", lambda line: line + b"{}\n", "")
_trailer("with_another_member", lambda line: line.replace(b',"seal"', b',"x":1,"seal"'), "")
_trailer("with_members_swapped", lambda line: line.replace(b"index", b"seal2", 1), "")
_trailer("twice", lambda line: line * 2, "")
_trailer("missing", lambda _: b"", "", (IncompleteCheckpointError, FormatError))
_trailer("of_megabytes_of_line_feeds", lambda line: line + b"\n" * (20 << 20), "", growth=160 << 20)


@CASES.add(IntegrityError, "seal")
def seal_that_does_not_match(forgery: Forgery) -> None:
    forgery.seal = "xxh3_128:" + "ab" * 16


@CASES.add(IntegrityError, "seal", blind=("open", "load_into"))
def seal_that_does_not_match_beside_a_record_that_no_one_needs(forgery: Forgery) -> None:
    del forgery.state["h"]
    forgery.seal = "xxh3_128:" + "ab" * 16


@CASES.add((FormatError, IntegrityError), "seal")
def seal_of_another_algorithm(forgery: Forgery) -> None:
    forgery.seal = "sha256:" + "ab" * 32


# --- the layout in lines ------------------------------------------------------------------------


def _lines(name: str, edit: Callable[[Forgery], Any], says: str = "line|JSON|record") -> None:
    CASES.add((FormatError, IncompleteCheckpointError), says, name=f"line_{name}")(edit)


def _rewrite(old: bytes, new: bytes) -> Callable[[Forgery], None]:
    def edit(forgery: Forgery) -> None:
        forgery.edit_shard = lambda text: text.replace(old, new, 1)

    return edit


def _head_line(change: Callable[[bytes], bytes]) -> Callable[[Forgery], None]:
    def edit(forgery: Forgery) -> None:
        record = forgery["/w"]
        record.head_line = change(dumps(record.members)[:-1] + b',"chunks":[\n')

    return edit


def _tail_line(change: Callable[[bytes], bytes]) -> Callable[[Forgery], None]:
    def edit(forgery: Forgery) -> None:
        record = forgery["/w"]
        record.tail_line = change(forgery._tail(record))

    return edit


CASES.add((FormatError, IntegrityError), "", name="line_with_carriage_return")(
    _rewrite(b"\n", b"\r\n")
)
_lines("with_a_break_in_a_head", _head_line(lambda line: line.replace(b",", b",\n", 1)))
_lines("with_a_break_in_a_tail", _tail_line(lambda line: line.replace(b",", b",\n", 1)))
_lines("with_a_break_after_a_head", _head_line(lambda line: line + b"\n"))
_lines("with_a_chunk_beside_a_head", _head_line(lambda line: line[:-1]), "")
_lines("with_a_member_after_chunks", _head_line(lambda line: line[:-2] + b'],"x":[\n'), "")
_lines("with_an_object_closed_early", _head_line(lambda line: line[:-2] + b"]},\n"), "")
_lines("with_a_record_inside_a_record", _tail_line(lambda line: line[:-1] + b',"x":{}}}'), "")
_lines("with_two_records_in_a_tail", _tail_line(lambda line: line + b',{"name":"/x"}'), "")
_lines("with_spaces_before_a_head", _head_line(lambda line: b" " + line), "")
_lines("with_a_tail_of_arrays", _tail_line(lambda line: b"]]" + line[1:]), "")
_lines("without_a_comma", _rewrite(b'"},\n{"name"', b'"}\n{"name"'), "")
_lines("with_a_comma_too_many", _rewrite(b'"}\n],"index"', b'"},\n],"index"'), "")
_lines("with_two_commas", _rewrite(b'"},\n{"name"', b'"},,\n{"name"'), "")
_lines("with_a_blank_line", _rewrite(b'"},\n{"name"', b'"},\n\n{"name"'), "")
_lines("with_a_comment", _rewrite(b'"},\n{"name"', b'"},\n// hello\n{"name"'), "")


def _chunk(name: str, change: Callable[[bytes], bytes]) -> None:
    @CASES.add((FormatError, IncompleteCheckpointError), "", name=f"chunk_line_{name}")
    def _(forgery: Forgery) -> None:
        record = forgery["/w"]
        lines = [b'"' + payload + b'",\n' for payload in record.payloads]
        lines[-1] = lines[-1].replace(b",", b"")
        lines[0] = change(lines[0])
        record.chunk_lines = lines


_chunk("with_a_space", lambda line: b" " + line)
_chunk("with_a_space_behind", lambda line: line.replace(b",", b" ,"))
_chunk("in_brackets", lambda line: b"[" + line[1:].replace(b'"', b"]"))
_chunk("in_single_quotes", lambda line: line.replace(b'"', b"'"))
_chunk("without_quotes", lambda line: line.replace(b'"', b""))
_chunk("without_comma", lambda line: line.replace(b",", b""))
_chunk("with_two_commas", lambda line: line.replace(b",", b",,"))
_chunk("of_null", lambda _: b"null,\n")
_chunk("that_is_empty", lambda _: b"\n")
_chunk("missing", lambda _: b"")
_chunk("doubled", lambda line: line * 2)
_chunk("with_a_second_string", lambda line: line[:-2] + b',"",\n')


@CASES.add(FormatError, "twice", name="index_in_the_head_too")
def index_in_the_head_too(forgery: Forgery) -> None:
    forgery.head["index"] = []


@CASES.add(FormatError, "twice")
def seal_in_the_head_too(forgery: Forgery) -> None:
    forgery.head["seal"] = "xxh3_128:" + "ab" * 16


@CASES.add(FormatError, "twice")
def tensors_in_the_head_too(forgery: Forgery) -> None:
    forgery.head["tensors"] = []


@CASES.add((FormatError, IntegrityError), "base64|JSON")
def no_tensors_line(forgery: Forgery) -> None:
    forgery.edit_shard = lambda text: text.replace(b'\n"tensors":[\n', b'\n"tensors": [\n')


@CASES.add(LimitError, "head of a record|a line of over", forms=("zst",))
def head_line_of_megabytes(forgery: Forgery) -> None:
    forgery["/w"].members["padding"] = "x" * (2 << 20)


@CASES.add(LimitError, "end of a record|a line of over", forms=("zst",))
def tail_line_of_megabytes(forgery: Forgery) -> None:
    forgery["/w"].tail["padding"] = [1] * (1 << 20)


@CASES.parameters()
def test_refused(case: Case, form: str, child: Child, tmp_path: Path) -> None:
    check(case, form, child, tmp_path)
