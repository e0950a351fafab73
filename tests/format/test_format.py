"""The text itself, as docs/format.md says it: written out, taken apart and put together again."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests import independent_reader
from tests.texts import HASHES, single_text, state

SPECIFICATION = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


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
    example = SPECIFICATION.split("```text\n")[1].split("```")[0].splitlines()
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
