"""The text itself, as docs/format.md says it: written out, taken apart and put together again."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from tests import independent_reader
from tests.golden.expected import DTYPES as EVERY_DTYPE
from tests.golden.expected import NEWER_DTYPES
from tests.support import difference

SPECIFICATION = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")

HASHES: dict[str, Callable[[bytes], str]] = {
    "xxh3_128": lambda data: xxhash.xxh3_128_hexdigest(data),
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
}


def state() -> dict[str, Any]:
    """A small state with a bit of everything."""
    weight = torch.tensor([[1.0, -2.5], [0.5, float("nan")]])
    return {
        "w": weight,
        "epoch": 3,
        "opt": {"lr": 0.1, "betas": (0.9, 0.95)},
        "n": torch.tensor([], dtype=torch.int16),
        "tied": weight,
    }


def single_text(value: object, **options: Any) -> bytes:
    """The text of a single file."""
    stream = io.BytesIO()
    jsonckpt.save(value, stream, **options)
    return stream.getvalue()


def texts(path: Path) -> tuple[str, str]:
    """The manifest and the one shard of a directory."""
    [shard] = path.glob("shard-*")
    return (path / "manifest.json").read_text(), shard.read_text()


# --- the whole text, literally ----------------------------------------------------------------

STATE = """{
 "w": {"$tensor": "/w"},
 "epoch": 3,
 "opt": {"lr": 0.1, "betas": {"$tuple": [0.9, 0.95]}},
 "n": {"$tensor": "/n"},
 "tied": {"$tied": {"name": "/tied", "of": "/w"}}
}"""

RECORDS = """\
{"name":"/w","dtype":"float32","shape":[2,2],"encoding":"base64","compression":"none",\
"filter":"none","chunk_bytes":8,"chunks":[
"AACAPwAAIMA=",
"AAAAPwAAwH8="
],"xxh3_128":["0ee1ae55463f11904bfb7dc1c530658a","e2e08e485c86948e774a46b4630c7c02"],\
"digest":"ca3f9e9ef4dbc1017a8d6bfc09a75975"},
{"name":"/n","dtype":"int16","shape":[0],"encoding":"base64","compression":"none",\
"filter":"none","chunk_bytes":8,"chunks":[
],"xxh3_128":[],"digest":"a9dd178e0a6b97279830feee7ecd1898"}
"""

SINGLE = (
    """{"format":"jsonckpt.shard","version":1,"save_id":"SAVE_ID","checksum":"xxh3_128",
"created_at":"CREATED_AT",
"created_by":"jsonckpt VERSION",
"totals":{"tensors":2,"bytes":16},
"metadata":{"run": "a"},
"state":"""
    + STATE
    + """,
"tensors":[
"""
    + RECORDS
    + """],"index":[[<428>,289,[[<558>,12],[<574>,12]]],[<719>,185,[]]],"seal":"SEAL",\
"index_offset":<                 915>}
"""
)

SHARD = (
    """{"format":"jsonckpt.shard","version":1,"save_id":"SAVE_ID","checksum":"xxh3_128",
"tensors":[
"""
    + RECORDS
    + """],"index":[[119,289,[[249,12],[265,12]]],[410,185,[]]],"seal":"SEAL","index_offset":\
                 606}
"""
)

MANIFEST = (
    """{"format":"jsonckpt.manifest",
"version":1,
"save_id":"SAVE_ID",
"created_at":"CREATED_AT",
"created_by":"jsonckpt VERSION",
"totals":{"tensors":2,"bytes":16,"stored_bytes":24,"shards":1},
"checksum":"xxh3_128",
"metadata":{"run": "a"},
"state":"""
    + STATE
    + """,
"shards":[
{"file":"shard-SAVE_ID_12-00001.json","bytes":739,"text_bytes":739,"seal":"SHARD_SEAL"}
],
"codecs":[
{"encoding":"base64","compression":"none","filter":"none","chunk_bytes":8}
],
"tensors":[
{"name":"/w","dtype":"float32","shape":[2,2],"shard":0,"offset":119,"length":289,"codec":0,\
"chunks":[[249,12,"0ee1ae55463f11904bfb7dc1c530658a"],[265,12,"e2e08e485c86948e774a46b4630c7c02"]]},
{"name":"/n","dtype":"int16","shape":[0],"shard":0,"offset":410,"length":185,"codec":0,"chunks":[]}
],
"seal":"SEAL"}
"""
)


def filled(template: str, text: str, **more: str) -> str:
    """A template with what differs from save to save taken from a text."""
    document = json.loads(text)
    known = {
        "SAVE_ID_12": document["save_id"][:12],
        "SAVE_ID": document["save_id"],
        "CREATED_AT": document.get("created_at", ""),
        "VERSION": jsonckpt.__version__,
        **more,
        "SEAL": document["seal"],
    }
    for placeholder, value in known.items():
        template = template.replace(placeholder, value)
    return template


def test_the_text_of_a_single_file() -> None:
    text = single_text(state(), chunk_size=8, metadata={"run": "a"}).decode()
    # The program's version stands before the records: a longer one moves them.
    more = len(jsonckpt.__version__) - len("0.1.0")
    moved = re.sub(r"<([ 0-9]*)>", lambda m: f"{int(m[1]) + more:{len(m[1])}d}", SINGLE)
    assert text == filled(moved, text)


def test_the_text_of_a_directory(tmp_path: Path) -> None:
    jsonckpt.save(state(), tmp_path / "c", chunk_size=8, metadata={"run": "a"})
    manifest, shard = texts(tmp_path / "c")
    assert shard == filled(SHARD, shard)
    seal = json.loads(shard)["seal"]
    assert manifest == filled(MANIFEST, manifest, SHARD_SEAL=seal)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "manifest.json",
        f"shard-{json.loads(manifest)['save_id'][:12]}-00001.json",
    ]


def test_the_lines_of_a_list(tmp_path: Path) -> None:
    jsonckpt.save(state(), tmp_path / "c", chunk_size=8, encoding="list")
    _, shard = texts(tmp_path / "c")
    assert shard.splitlines()[3:5] == ["[1.0,-2.5],", '[0.5,"NaN"]']


def test_two_saves_differ_in_their_identity_and_time_only() -> None:
    variable = rb'"(save_id|created_at|seal)":"[^"]*"'
    one, other = (re.sub(variable, b"", single_text(state())) for _ in range(2))
    assert one == other
    ids = {json.loads(single_text(None))["save_id"] for _ in range(10)}
    assert len(ids) == 10


def test_the_example_of_the_specification_is_a_file(tmp_path: Path) -> None:
    example = SPECIFICATION.split("```")[1].strip().splitlines()
    value = {"w": torch.arange(1.0, 7.0).reshape(2, 3), "b": torch.zeros(0)}
    jsonckpt.save(value, tmp_path / "c")
    _, shard = texts(tmp_path / "c")
    lines = shard.splitlines()
    assert len(lines) == len(example)
    save_id = json.loads(shard)["save_id"]
    for line, shown in zip(lines, example, strict=True):
        pattern = re.escape(shown.replace("3f9c2a7e61b04d5c8a7f00c1d2e3f405", save_id))
        pattern = re.sub(r"[0-9a-f]{4}…|\\ …\\ |…", ".*", pattern)
        assert re.fullmatch(pattern, line), f"{shown}\nis not\n{line}"


# --- every text -------------------------------------------------------------------------------


def varied() -> dict[str, Any]:
    """A state of many kinds of records."""
    return {
        "floats": torch.arange(300, dtype=torch.float32).reshape(3, 100) / 7,
        "halves": torch.arange(90, dtype=torch.float16),
        "bools": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 5),
        "one": torch.tensor(7, dtype=torch.uint8),
        "é/~\n": [torch.ones(2, dtype=torch.complex64)],
        "text": 'looks like\n"tensors":[\nand ],"seal":"x"}',
    }


OPTIONS: list[dict[str, Any]] = [
    {"chunk_size": 128},
    {"chunk_size": 64, "encoding": "list", "checksum": "sha256"},
    {"chunk_size": 256, "compression": "zstd", "checksum": "sha256", "max_shard_size": 1000},
    {"chunk_size": 100, "filter": "shuffle"},
    {"chunk_size": 100, "encoding": "list", "compression": "zstd", "max_shard_size": 1000},
]


@pytest.fixture(params=OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    jsonckpt.save(varied(), tmp_path / "c", **request.param)
    return tmp_path / "c"


def all_texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """The texts of the shards of a directory by the names of the files."""
    for file in sorted(path.glob("shard-*")):
        yield file.name, independent_reader.file_text(file)


HEAD_LINE = re.compile(
    rb'\{"name":"[^"]*","dtype":"\w+","shape":\[[0-9,]*\],"encoding":"(base64|list)",'
    rb'"compression":"(none|zstd)","filter":"(none|shuffle)","chunk_bytes":[0-9]+,"chunks":\['
)
CHUNK_LINE = re.compile(rb'("[A-Za-z0-9+/]+=*"|\[[^\[\]]+\]),?')
TAIL_LINE = re.compile(rb'\],"(xxh3_128|sha256)":\[("[0-9a-f]+",?)*\],"digest":"[0-9a-f]+"\},?')
LAST_LINE = re.compile(
    rb'\],"index":\[[0-9,\[\]]*\],"seal":"\w+:[0-9a-f]+","index_offset":[ ]*[0-9]+\}'
)


def test_the_layout_of_lines(directory: Path) -> None:
    for _, text in all_texts(directory):
        assert text.endswith(b"}\n")
        assert b"\r" not in text
        lines = text.split(b"\n")[:-1]
        start = lines.index(b'"tensors":[')
        assert start == 1
        kinds = ""
        for line in lines[start + 1 :]:
            [kind] = [
                kind
                for kind, pattern in zip(
                    "hctl", (HEAD_LINE, CHUNK_LINE, TAIL_LINE, LAST_LINE), strict=True
                )
                if pattern.fullmatch(line)
            ]
            kinds += kind
        assert re.fullmatch("(hc*t)*l", kinds)
        for this, following, line in zip(kinds, kinds[1:], lines[start + 1 :], strict=False):
            if this in "ct":
                assert line.endswith(b",") == (following == {"c": "c", "t": "h"}[this])


def test_the_index_points_at_records_and_payloads(directory: Path) -> None:
    for _, text in all_texts(directory):
        document = json.loads(text)
        assert len(document["index"]) == len(document["tensors"])
        for record, row in zip(document["tensors"], document["index"], strict=True):
            offset, length, payloads = row
            assert json.loads(text[offset : offset + length]) == record
            assert text[offset - 2 : offset] in (b"[\n", b",\n")
            found = []
            for start, size in payloads:
                payload = text[start : start + size]
                marks = text[start - 1 : start] + text[start + size : start + size + 1]
                if record["encoding"] == "list":
                    assert marks == b"[]"
                    found.append(json.loads(b"[" + payload + b"]"))
                else:
                    assert marks == b'""'
                    found.append(payload.decode())
            assert found == record["chunks"]


def skeleton(text: bytes) -> bytes:
    """The text without its payloads."""
    cut = text
    ranges = [place for row in json.loads(text)["index"] for place in row[2]]
    for start, size in reversed(ranges):
        cut = cut[:start] + cut[start + size :]
    return cut


def test_the_seal_covers_the_skeleton(directory: Path) -> None:
    for _, text in all_texts(directory):
        document = json.loads(text)
        bare = skeleton(text)
        sealed = bare[: bare.rindex(b',"seal":')]
        algorithm = document["checksum"]
        assert document["seal"] == f"{algorithm}:{HASHES[algorithm](sealed)}"


def test_the_index_is_found_from_the_end(directory: Path) -> None:
    for _, text in all_texts(directory):
        found = re.search(rb'"index_offset":( *[0-9]+)\}\n$', text[-64:])
        assert found is not None
        assert len(found[1]) == 20
        index, _ = json.JSONDecoder().raw_decode(text[int(found[1]) :].decode())
        assert index == json.loads(text)["index"]


def test_the_checksums_cover_raw_bytes_and_the_digest_the_record(tmp_path: Path) -> None:
    for number, checksum in enumerate(HASHES):
        path = tmp_path / str(number)
        jsonckpt.save(varied(), path, chunk_size=64, checksum=checksum)
        digest = HASHES[checksum]
        for _, text in all_texts(path):
            for record in json.loads(text)["tensors"]:
                sums = [digest(base64.b64decode(chunk)) for chunk in record["chunks"]]
                assert record[checksum] == sums
                lines = [record["name"], record["dtype"], ",".join(map(str, record["shape"]))]
                lines += ["cpu", "base64", "none", "none", str(record["chunk_bytes"]), *sums]
                identity = "".join(f"{line}\n" for line in lines)
                assert record["digest"] == digest(identity.encode())


def test_the_manifest_says_what_the_shards_say(directory: Path) -> None:
    text = (directory / "manifest.json").read_bytes()
    manifest = json.loads(text)
    table = re.findall(r"^\| `(\w+)` \|", SPECIFICATION.split("## 5.")[1], re.MULTILINE)
    assert list(manifest) == table[:13]
    end = text.rindex(b',\n"seal":')
    algorithm = manifest["checksum"]
    assert manifest["seal"] == f"{algorithm}:{HASHES[algorithm](text[:end])}"
    entries = iter(manifest["tensors"])
    payload_bytes = 0
    shard_texts = dict(all_texts(directory))
    assert [shard["file"] for shard in manifest["shards"]] == list(shard_texts)
    for number, shard in enumerate(manifest["shards"]):
        shard_text = shard_texts[shard["file"]]
        document = json.loads(shard_text)
        assert shard["seal"] == document["seal"]
        assert shard["text_bytes"] == len(shard_text)
        assert shard["bytes"] == (directory / shard["file"]).stat().st_size
        assert document["save_id"] == manifest["save_id"]
        for record, row in zip(document["tensors"], document["index"], strict=True):
            entry = next(entries)
            codec = manifest["codecs"][entry["codec"]]
            assert {**record, **codec} == record
            assert {key: entry[key] for key in ("name", "dtype", "shape")}.items() <= record.items()
            assert (entry["shard"], entry["offset"], entry["length"]) == (number, *row[:2])
            assert entry["chunks"] == [
                [*place, digest] for place, digest in zip(row[2], record[algorithm], strict=True)
            ]
            payload_bytes += sum(size for _, size in row[2])
    assert next(entries, None) is None
    assert manifest["totals"] == {
        "tensors": 7 - 1,
        "bytes": 1200 + 180 + 3 + 0 + 1 + 16,
        "stored_bytes": payload_bytes,
        "shards": len(manifest["shards"]),
    }


# --- editing ----------------------------------------------------------------------------------


def edited(path: Path, old: str, new: str) -> None:
    """Replace a part of the manifest, as an editor would."""
    manifest = path / "manifest.json"
    text = manifest.read_text()
    assert text.count(old) == 1
    manifest.write_text(text.replace(old, new))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    jsonckpt.save(state(), tmp_path / "c")
    return tmp_path / "c"


def unseal(path: Path) -> None:
    """Set ``"seal":null``."""
    seal = json.loads((path / "manifest.json").read_text())["seal"]
    edited(path, f'\n"seal":"{seal}"}}', '\n"seal":null}')


def test_an_edit_with_the_seal_taken_off_is_believed(checkpoint: Path) -> None:
    unseal(checkpoint)
    edited(checkpoint, '"lr": 0.1', '"lr": 0.025')
    assert jsonckpt.load(checkpoint)["opt"]["lr"] == 0.025
    assert jsonckpt.verify(checkpoint).ok
    assert independent_reader.load(checkpoint)["opt"]["lr"] == 0.025


def test_an_edit_under_the_seal_is_damage(checkpoint: Path) -> None:
    edited(checkpoint, '"lr": 0.1', '"lr": 0.2')
    with pytest.raises(jsonckpt.IntegrityError, match='"seal":null'):
        jsonckpt.load(checkpoint)
    assert not jsonckpt.verify(checkpoint).ok


@pytest.mark.parametrize("end", ["}", "}\n", "} \r\n\t\n"])
def test_white_space_may_end_a_manifest(checkpoint: Path, end: str) -> None:
    manifest = checkpoint / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().rstrip()[:-1] + end.encode())
    assert jsonckpt.load(checkpoint)["epoch"] == 3
    assert independent_reader.load(checkpoint)["epoch"] == 3


def test_a_manifest_without_its_seal_is_refused(checkpoint: Path) -> None:
    seal = json.loads((checkpoint / "manifest.json").read_text())["seal"]
    edited(checkpoint, f',\n"seal":"{seal}"}}', "}")
    with pytest.raises(jsonckpt.FormatError, match="seal is missing"):
        jsonckpt.load(checkpoint)


def test_members_that_nobody_knows_are_ignored(checkpoint: Path) -> None:
    unseal(checkpoint)
    edited(
        checkpoint,
        '"epoch": 3',
        '"epoch": 3, "tied again": {"$tied": {"name":"/x","of":"/w","hue":1}}',
    )
    edited(checkpoint, '"created_by"', '"later":{"a":[1,{}]},\n"created_by"')
    edited(checkpoint, '"text_bytes"', '"colour":"red","text_bytes"')
    edited(checkpoint, ',"chunk_bytes":1048576}', ',"chunk_bytes":1048576,"speed":null}')
    edited(checkpoint, '{"name":"/n",', '{"weight":[7],"name":"/n",')
    found = jsonckpt.load(checkpoint)
    assert found["tied again"].data_ptr() == found["w"].data_ptr()


def test_features_that_nobody_knows_are_refused_by_name(checkpoint: Path) -> None:
    unseal(checkpoint)
    edited(checkpoint, '"created_by"', '"requires":["regions"],\n"created_by"')
    with pytest.raises(jsonckpt.UnsupportedVersionError, match="regions"):
        jsonckpt.load(checkpoint)


@pytest.mark.parametrize(
    "place",
    [
        "head",
        "tail",
    ],
)
def test_a_feature_that_a_record_requires_is_refused_by_name(place: str, tmp_path: Path) -> None:
    known = crafted(["1"], "uint8", [1], [b"\1"], **{place: '"requires":[],'})
    assert both_load(known, tmp_path).tolist() == [1]
    text = crafted(["1"], "uint8", [1], [b"\1"], **{place: '"requires":["regions"],'})
    (tmp_path / "r.json").write_bytes(text)
    for source in (tmp_path / "r.json", io.BytesIO(text)):
        with pytest.raises(jsonckpt.UnsupportedVersionError, match="regions"):
            jsonckpt.load(source)
    with pytest.raises(ValueError, match="required"):
        independent_reader.load(tmp_path / "r.json")


@pytest.mark.parametrize("version", ["2", "0", "1.0", "true", '"1"', "null"])
def test_another_version_is_refused(checkpoint: Path, version: str) -> None:
    unseal(checkpoint)
    edited(checkpoint, '"version":1', f'"version":{version}')
    with pytest.raises(jsonckpt.FormatError, match="version"):
        jsonckpt.load(checkpoint)
    with pytest.raises(ValueError, match="version"):
        independent_reader.load(checkpoint)


def test_objects_and_tags(checkpoint: Path) -> None:
    unseal(checkpoint)
    edited(checkpoint, '"lr": 0.1', '"lr": {"$x": 1, "b": {}}')
    expected = {"$x": 1, "b": {}}
    assert jsonckpt.load(checkpoint)["opt"]["lr"] == expected
    assert independent_reader.load(checkpoint)["opt"]["lr"] == expected
    edited(checkpoint, '{"$x": 1, "b": {}}', '{"$x": 1}')
    with pytest.raises(jsonckpt.FormatError, match=r"\$x"):
        jsonckpt.load(checkpoint)
    edited(checkpoint, '{"$x": 1}', "1e400")
    with pytest.raises(jsonckpt.FormatError, match="1e400"):
        jsonckpt.load(checkpoint)
    with pytest.raises(ValueError, match="1e400"):
        independent_reader.load(checkpoint)


# --- other texts of the same JSON -------------------------------------------------------------


def refused_by_all(text: bytes, tmp_path: Path) -> None:
    """Fail unless every reader refuses the text of a single file."""
    (tmp_path / "r.json").write_bytes(text)
    with pytest.raises(jsonckpt.JsonckptError):
        jsonckpt.load(tmp_path / "r.json")
    with pytest.raises(jsonckpt.JsonckptError):
        jsonckpt.load(io.BytesIO(text))
    with pytest.raises((ValueError, KeyError)):
        independent_reader.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: json.dumps(json.loads(text)).encode(),
        lambda text: json.dumps(json.loads(text), indent=1).encode(),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.rstrip(),
        lambda text: text + b"\n",
        lambda text: text + b"{}",
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b'],"index"', b'], "index"'),
        lambda text: text.replace(b'","index_offset"', b'","more":1,"index_offset"'),
        lambda text: text.replace(b'"index_offset": ', b'"index_offset":'),
        lambda text: text.replace(b'"epoch": 3', b'"epoch": 4'),
        lambda text: text.replace(b'"dtype":"int16"', b'"dtype":"uint16"'),
        lambda text: text[: len(text) // 2],
        lambda text: text[:0],
    ],
)
def test_a_text_that_was_touched_is_refused(
    change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    text = single_text(state(), checksum="sha256")
    assert change(text) != text
    refused_by_all(change(text), tmp_path)


def test_frames_of_a_compressed_file(tmp_path: Path) -> None:
    text = single_text(state())
    compress = zstandard.ZstdCompressor().compress
    path = tmp_path / "c.json.zst"
    path.write_bytes(b"".join(compress(text[i : i + 333]) for i in range(0, len(text), 333)))
    assert jsonckpt.load(path)["epoch"] == 3
    assert independent_reader.load(path)["epoch"] == 3
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + compress(text))
    with pytest.raises(jsonckpt.FormatError, match="zstd frame"):
        jsonckpt.load(path)


@pytest.mark.parametrize(
    "size",
    [
        300,
        1 << 20,
    ],
)
def test_a_compressed_file_that_was_cut_off(size: int, tmp_path: Path) -> None:
    text = single_text(state())
    compress = zstandard.ZstdCompressor().compress
    frames = b"".join(compress(text[i : i + size]) for i in range(0, len(text), size))
    path = tmp_path / "c.json.zst"
    path.write_bytes(frames[:-3])
    with pytest.raises(jsonckpt.IncompleteCheckpointError):
        jsonckpt.load(path)


# --- what one program writes, the other reads -------------------------------------------------

DTYPES = [name for name in {**EVERY_DTYPE, **NEWER_DTYPES} if hasattr(torch, name)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.binary(max_size=200)), max_size=3),
    st.sampled_from([{}, {"filter": "shuffle"}, {"compression": "zstd"}, {"encoding": "list"}]),
    st.integers(1, 300),
    st.sampled_from(sorted(HASHES)),
)
def test_any_bits_of_any_dtype(
    elements: list[tuple[str, bytes]], codec: dict[str, Any], chunk_size: int, checksum: str
) -> None:
    value: list[torch.Tensor] = []
    for dtype, noise in elements:
        # Repeated, so that there is something to compress.
        raw = bytes(byte % 2 for byte in noise) if dtype == "bool" else noise * 3
        whole = len(raw) // getattr(torch, dtype).itemsize * getattr(torch, dtype).itemsize
        bits = torch.tensor(list(raw[:whole]), dtype=torch.uint8)
        value.append(bits.view(getattr(torch, dtype)))
    text = single_text(value, chunk_size=chunk_size, checksum=checksum, **codec)
    document, tensors = independent_reader.read_shard(text)
    found = independent_reader.resolve(document["state"], tensors)
    assert difference(value, found) is None
    assert difference(value, jsonckpt.load(io.BytesIO(text))) is None


# --- texts that no writer here writes ---------------------------------------------------------


def crafted(
    chunks: list[str],
    dtype: str,
    shape: list[int],
    raw: list[bytes],
    head: str = "",
    tail: str = "",
) -> bytes:
    """A single file with one tensor of number lists, as another program may write it.

    Args:
        chunks: what stands between the brackets of each chunk.
        raw: the raw bytes of each chunk.
        head, tail: further members of the record, before its chunks and after them.
    """
    digest = HASHES["sha256"]
    sums = [digest(data) for data in raw]
    device = json.loads("{" + head.strip(",") + "}").get("device", "cpu")
    step = max(map(len, raw))
    lines = ["", dtype, ",".join(map(str, shape)), device, "list", "none", "none", str(step), *sums]
    identity = digest("".join(f"{line}\n" for line in lines).encode())
    text = (
        '{"save_id":"00112233445566778899aabbccddeeff",\n "future":{"tensors":[1]},\n'
        '"format":"jsonckpt.shard", "version":1,"checksum":"sha256",\n'
        f'"created_at":"2026-01-02T03:04:05Z","created_by":"a test","totals":'
        f'{{"bytes":{sum(map(len, raw))},"tensors":1}},"metadata":{{}},"state":{{"$tensor":""}},\n'
        '"tensors":[\n'
    ).encode()
    bare = text
    start = len(text)
    opening = (
        f'{{"chunk_bytes":{step},"filter":"none","compression":"none", "encoding":"list",'
        f'"shape":{json.dumps(shape)},"dtype":"{dtype}","name":"",{head}"chunks":[\n'
    ).encode()
    text += opening
    bare += opening
    ranges = []
    for number, chunk in enumerate(chunks):
        ranges.append([len(text) + 1, len(chunk.encode())])
        comma = "," if number + 1 < len(chunks) else ""
        text += f"[{chunk}]{comma}\n".encode()
        bare += f"[]{comma}\n".encode()
    closing = f'],{tail}"digest":"{identity}","sha256":{json.dumps(sums)}}}'.encode()
    text += closing
    bare += closing
    index = json.dumps([[start, len(text) - start, ranges]], separators=(",", ":"))
    text += b'\n],"index":'
    bare += b'\n],"index":' + index.encode()
    seal = digest(bare)
    return text + f'{index},"seal":"sha256:{seal}","index_offset":{len(text):20d}}}\n'.encode()


def both_load(text: bytes, tmp_path: Path) -> torch.Tensor:
    """What a crafted text holds, when all readers agree about it."""
    (tmp_path / "c.json").write_bytes(text)
    found: torch.Tensor = jsonckpt.load(tmp_path / "c.json")
    for other in (jsonckpt.load(io.BytesIO(text)), independent_reader.load(tmp_path / "c.json")):
        assert other.dtype == found.dtype
        assert torch.equal(found.view(torch.uint8), other.view(torch.uint8))
    return found


def test_another_program_may_write_members_in_another_order(tmp_path: Path) -> None:
    raw = [b"\1\2\3", b"\4\5\6", b"\7"]
    text = crafted(["1,2,3", "4, 5 ,\t6", "7"], "uint8", [7], raw)
    assert both_load(text, tmp_path).tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_members_of_a_record_that_nobody_knows_are_ignored(tmp_path: Path) -> None:
    text = crafted(["1"], "uint8", [1, 1], [b"\1"], '"a":{"b":[]},', '"c":[1,"x"],"d":null,')
    assert both_load(text, tmp_path).tolist() == [[1]]


def test_the_device_is_part_of_the_identity(tmp_path: Path) -> None:
    text = crafted(["1"], "uint8", [1], [b"\1"], '"device":"cuda:1",')
    assert jsonckpt.load(io.BytesIO(text), map_location="cpu").tolist() == [1]
    (tmp_path / "d.json").write_bytes(text)
    with jsonckpt.open(tmp_path / "d.json") as opened:
        assert opened[""].device == "cuda:1"
    assert independent_reader.load(tmp_path / "d.json").tolist() == [1]
    refused_by_all(text.replace(b'"device":"cuda:1",', b""), tmp_path)


#: Texts of one number, and the bits that they mean.
NUMBERS: list[Any] = [
    ("float32", "-0", 0x80000000),
    ("float32", "1", 0x3F800000),
    ("float32", "1E0", 0x3F800000),
    ("float32", "100000000000000000000e-20", 0x3F800000),
    ("float32", "1e-60", 0x00000000),
    ("float64", "-1e-400", 0x8000000000000000),
    ("float64", "9007199254740993", 0x4340000000000000),
    ("float64", "0.1000000000000000055511151231257827", 0x3FB999999999999A),
    ("float16", "65519.99", 0x7BFF),
    # By way of binary32, where this is the middle between two: the even one.
    ("float16", "1.0004882812500002", 0x3C00),
    ("float16", "1.0005", 0x3C01),
    ("bfloat16", "1.0039062500000002", 0x3F80),
    ("float8_e4m3fn", "463.9", 0x7E),
    ("float8_e4m3fnuz", "-0.002", 0x82),
    ("float8_e5m2", "60000", 0x7B),
    ("float8_e8m0fnu", "6e-39", 0x00),
    ("float8_e8m0fnu", "1.5", 0x80),
    ("float8_e8m0fnu", "3", 0x80),
    ("float8_e8m0fnu", "2.9999", 0x80),
    ("float8_e8m0fnu", "3.0001", 0x81),
    ("float8_e8m0fnu", "2e38", 0xFE),
    ("float16", '"0xfe00"', 0xFE00),
    ("float8_e5m2", '"-Infinity"', 0xFC),
    ("bool", "1", 1),
    ("int8", "-128", 0x80),
    ("int4", "255", 0xFF),
]


@pytest.mark.parametrize(("dtype", "text", "bits"), NUMBERS)
def test_what_numbers_mean(dtype: str, text: str, bits: int, tmp_path: Path) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    size = getattr(torch, dtype).itemsize
    raw = bits.to_bytes(size, "little")
    found = both_load(crafted([text], dtype, [1], [raw]), tmp_path)
    assert bytes(found.view(torch.uint8).tolist()) == raw


#: Texts of one number that mean nothing, with the size of an element.
NO_NUMBERS = [
    *[("float32", text, 4) for text in ("1e39", "NaN", "Infinity", '"inf"', '"0x7fc00000"')],
    *[("float32", text, 4) for text in ('"0x3f800000"', '"0x7fc"', '"0x7FC00001"', "null", "[1]")],
    *[("float32", text, 4) for text in ("true", "+1", ".5", "1.", "01", "", '"-NaN"')],
    ("float16", "65520", 2),
    ("bfloat16", "3.4e38", 2),
    ("float8_e4m3fn", '"Infinity"', 1),
    ("float8_e4m3fn", "464.1", 1),
    ("float8_e4m3fnuz", "-0.0", 1),
    ("float8_e4m3fnuz", "-0.0001", 1),
    ("float8_e8m0fnu", "0", 1),
    ("float8_e8m0fnu", "-1", 1),
    ("float8_e8m0fnu", "4e-39", 1),
    ("uint8", "256", 1),
    ("uint8", "-1", 1),
    ("uint8", "1.0", 1),
    ("uint8", '"1"', 1),
    ("int8", "128", 1),
    ("bool", "2", 1),
    ("bool", "true", 1),
    ("uint8", "1,2", 1),
]


@pytest.mark.parametrize(("dtype", "text", "size"), NO_NUMBERS)
def test_what_means_no_number(dtype: str, text: str, size: int, tmp_path: Path) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    (tmp_path / "n.json").write_bytes(crafted([text], dtype, [1], [bytes(size)]))
    with pytest.raises(jsonckpt.FormatError):
        jsonckpt.load(tmp_path / "n.json")
