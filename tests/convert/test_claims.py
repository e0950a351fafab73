"""What a conversion keeps beside the tensors, and what it says about that."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.commands.convert import main
from jsonckpt._src.errors import ArgumentError, FormatError, IntegrityError, UnsupportedTypeError
from jsonckpt._src.sources.safetensors_files import load_safetensors
from jsonckpt.convert import convert
from tests.convert.guide import guide_state

METADATA = {"run": "a", "step": 3, "nested": {"lr": [0.1, None]}, "format": "mine", "copy": "w"}
NOT_KEPT = "what the format does not keep (see the notes)"

# --- metadata -----------------------------------------------------------------------------------


def written(path: Path) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors file, as it is there."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def test_metadata_goes_to_safetensors_and_back(tmp_path: Path) -> None:
    tied = torch.ones(2)
    jsonckpt.save({"w": tied, "v": tied}, tmp_path / "a", metadata=METADATA)
    convert(tmp_path / "a", tmp_path / "b.safetensors", test_load=True)
    found = written(tmp_path / "b.safetensors")
    assert found["run"] == "a"
    assert (found["format"], found["v"]) == ("pt", "w")
    assert "copy" not in found  # it would read as a tie
    assert json.loads(found["jsonckpt.metadata"]) == {
        key: value for key, value in METADATA.items() if key != "run"
    }
    for source, target in (("b.safetensors", "c.json"), ("b.safetensors", "d.safetensors")):
        result = convert(tmp_path / source, tmp_path / target, test_load=True)
        assert any("tied: v is w" in note for note in result.notes)
    with jsonckpt.open(tmp_path / "c.json") as checkpoint:
        assert checkpoint.metadata == METADATA
        assert sorted(checkpoint) == ["/v", "/w"]
    assert written(tmp_path / "d.safetensors") == found


def test_metadata_of_a_safetensors_file_is_kept(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    metadata = {"format": "pt", "ss_network_dim": "8", "jsonckpt.metadata": "not JSON"}
    safetensors.save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata=metadata)
    convert(tmp_path / "a.safetensors", tmp_path / "b.json", test_load=True)
    with jsonckpt.open(tmp_path / "b.json") as checkpoint:
        assert checkpoint.metadata == {"ss_network_dim": "8", "jsonckpt.metadata": "not JSON"}


def test_metadata_of_a_sharded_index_is_kept(tmp_path: Path) -> None:
    for number in (1, 2):
        jsonckpt.save({f"w{number}": torch.ones(2)}, tmp_path / "x", metadata={"of": str(number)})
        convert(tmp_path / "x", tmp_path / f"model-{number}.safetensors")
    index = {
        "metadata": {"total_size": 16, "note": "mine"},
        "weight_map": {"w1": "model-1.safetensors", "w2": "model-2.safetensors"},
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    result = convert(tmp_path / "model.safetensors.index.json", tmp_path / "o", test_load=True)
    assert result.notes == ["the metadata 'of' of model-2.safetensors differs from what came first"]
    with jsonckpt.open(tmp_path / "o") as checkpoint:
        assert checkpoint.metadata == {"note": "mine", "of": "1"}


@pytest.mark.parametrize("to", ["pt", "legacy-json"])
def test_metadata_without_a_place_is_named(to: Any, tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "a", metadata=METADATA)
    for dry_run in (False, True):
        result = convert(tmp_path / "a", tmp_path / "o.x", to=to, dry_run=dry_run, overwrite=True)
        assert "the metadata is left out (run, step, nested, format, copy)" in result.notes[0]
        assert "the metadata" in result.not_compared


@pytest.mark.parametrize(
    "packed",
    ["{", "[" * 100_000, "[]", "null", '{"a":1,"a":2}', "1" * 5000, '{"w": ' + "1" * 5000 + "}"],
    ids=range(7),
)
def test_metadata_of_another_program_under_our_key(packed: str, tmp_path: Path) -> None:
    _safetensors(tmp_path / "a.safetensors", {"jsonckpt.metadata": packed})
    convert(tmp_path / "a.safetensors", tmp_path / "b.json", test_load=True)
    with jsonckpt.open(tmp_path / "b.json") as checkpoint:
        assert checkpoint.metadata == {"jsonckpt.metadata": packed}


def test_metadata_that_a_checkpoint_cannot_hold_is_named(tmp_path: Path) -> None:
    metadata = {"bad": "\ud800", "good": "x", "jsonckpt.metadata": '{"nan": NaN, "n": 1}'}
    _safetensors(tmp_path / "a.safetensors", metadata)
    result = convert(tmp_path / "a.safetensors", tmp_path / "b", test_load=True)
    assert sorted(result.notes) == [
        f"the metadata {name!r} is left out: it is no JSON that a checkpoint holds"
        for name in ("bad", "nan")
    ]
    assert result.not_compared == ["the metadata"]
    with jsonckpt.open(tmp_path / "b") as checkpoint:
        assert checkpoint.metadata == {"good": "x", "n": 1}


@pytest.mark.parametrize("metadata", [[], "x", 3, [1], [["a", 1]], None, {"total_size": 8}])
def test_metadata_of_an_index_of_any_type(metadata: Any, tmp_path: Path) -> None:
    _safetensors(tmp_path / "m.safetensors", {})
    index = {"metadata": metadata, "weight_map": {"w": "m.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    try:
        convert(tmp_path / "model.safetensors.index.json", tmp_path / "o", test_load=True)
    except FormatError as error:
        refused = str(error)
    else:
        assert jsonckpt.load(tmp_path / "o")["w"].shape == (2,)
        return
    assert "not an index of shards" in refused


def _safetensors(path: Path, metadata: dict[str, str]) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"__metadata__": metadata, "w": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def test_metadata_that_was_lost_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jsonckpt._src.convert import write

    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "a", metadata={"run": "a"})
    monkeypatch.setattr(write, "pack_metadata", lambda *_: {"format": "pt", "run": "a"})
    convert(tmp_path / "a", tmp_path / "b.safetensors", test_load=True)
    from jsonckpt._src.sources.safetensors_files import write_safetensors as honest

    monkeypatch.setattr(write, "write_safetensors", lambda file, what, _: honest(file, what, {}))
    with pytest.raises(jsonckpt.StateMismatchError, match="metadata"):
        convert(tmp_path / "a", tmp_path / "c.safetensors", test_load=True)


# --- what a format does not keep ----------------------------------------------------------------


def test_the_dialect_says_what_it_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tied = torch.ones(2)
    state = {
        "model": OrderedDict(w=tied, v=tied, h=torch.ones(2, dtype=torch.float16)),
        "p": torch.nn.Parameter(torch.tensor([torch.inf])),
        "t": torch.ones(2, 3).t(),
        "r": torch.ones(2, requires_grad=True),
        "betas": (0.5, (1,)),
        "ids": {0: 1, None: 2, 0.5: 3, "x": np.float64(2.5)},
        "nan": float("nan"),
        "path": Path("x"),
    }
    jsonckpt.save(state, tmp_path / "a.json")
    command = [str(tmp_path / "a.json"), "-o", str(tmp_path / "o"), "--to", "legacy-json"]
    assert main([*command, "--test-load", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["notes"] == [
        "dictionaries of other types become plain ones: 1 (/model)",
        "tied tensors are written once each, and not tied: 1 (/model/v)",
        "torch.float16 is written with the digits of float32: 1 (/model/h)",
        "parameters become tensors: 1 (/p)",
        "NaN and infinities are words, which strict parsers refuse; bits of a NaN are lost: 2 "
        "(/p, /nan)",
        "strides are not kept: 1 (/t)",
        "requires_grad is not kept: 1 (/r)",
        "tuples become lists: 2 (/betas, /betas/1)",
        "keys become strings: 3 (/ids/0, /ids/None, /ids/0.5)",
        "numbers and strings of other types become plain ones: 1 (/ids/x)",
    ]
    assert said["left_out"] == ["/path"]
    test = said["test_load"]
    assert (test["same"], test["everything"]) == (True, False)
    assert test["compared"] == ["number", "dtype", "shape", "key"]
    assert test["not_compared"] == ["1 name left out", NOT_KEPT]
    assert main([*command, "--test-load", "--overwrite"]) == 0
    text = capsys.readouterr().out
    assert "every bit" not in text
    assert "every number, dtype, shape and key is the same; not compared: 1 name" in text
    assert text.endswith(f"; {NOT_KEPT}\n")


def test_safetensors_says_what_it_does_not_keep(tmp_path: Path) -> None:
    state = {
        "p": torch.nn.Parameter(torch.ones(2)),
        "q": torch.nn.Parameter(torch.ones(3)),
        "r": torch.ones(2, requires_grad=True),
        "t": torch.ones(2, 3).t(),
        "plain": torch.ones(2),
        "epoch": 3,
    }
    jsonckpt.save(state, tmp_path / "a")
    result = convert(tmp_path / "a", tmp_path / "b.safetensors", test_load=True)
    lost = [
        "parameters become tensors: 2 (p, q)",
        "requires_grad is not kept: 1 (r)",
        "strides are not kept: 1 (t)",
    ]
    assert result.notes == lost
    assert result.compared == ("bit", "dtype", "shape", "name")
    assert result.not_compared == ["1 name left out", NOT_KEPT]


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        (["--include", "*ln_f.bias"], "195 names left out"),
        (["--no-optimizer"], "1 name left out"),
        (["--dtype", "bfloat16"], "28 tensors with the input, since --dtype changed them"),
    ],
)
def test_nothing_is_claimed_of_what_was_not_compared(
    options: list[str], rest: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint), "--test-load", "--overwrite", *options]
    if "--include" in options:
        rest = f"{sum(1 for _ in _tensors(guide_state())) - 1} names left out"
    assert main(command) == 0
    assert capsys.readouterr().out.endswith(f"is the same; not compared: {rest}\n")
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["test_load"]["not_compared"] == [rest]
    assert said["test_load"]["everything"] is False


def _tensors(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        yield state
    for child in state.values() if isinstance(state, dict) else ():
        yield from _tensors(child)


def test_json_after_an_include(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left out is named, in whatever container it lies."""
    state = {"a": [torch.ones(1), (torch.ones(1), 2)], "n": np.ones(2), "m": {0: torch.ones(1)}}
    jsonckpt.save(state, tmp_path / "a")
    assert main([str(tmp_path / "a"), "-o", str(tmp_path / "b"), "--include", "/m", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["left_out"] == ["/a/0", "/a/1/0", "/n"]
    assert (said["tensors"], said["tensors_left_out"]) == (1, 2)


# --- .pt ----------------------------------------------------------------------------------------


def test_a_pt_that_plain_torch_load_refuses_says_so(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "args": argparse.Namespace(lr=0.1)}
    jsonckpt.save(state, tmp_path / "a")
    result = convert(tmp_path / "a", tmp_path / "o.pt", unsafe_pickle=True, test_load=True)
    [note] = result.notes
    assert "plain torch.load refuses this file: it has 'argparse.Namespace'" in note
    assert "weights_only=False" in note
    assert "torch.serialization.add_safe_globals" in note
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "o.pt")
    jsonckpt.save({"w": torch.ones(2), "n": [1, "x", None]}, tmp_path / "b")
    assert convert(tmp_path / "b", tmp_path / "p.pt", test_load=True).notes == []


class Own:
    """A class that only a pickle holds."""


def test_a_pt_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    jsonckpt.register(Own, "ClaimsOwn", lambda _: None, lambda _: Own())
    jsonckpt.save({"w": torch.ones(2), "own": Own()}, tmp_path / "a")
    (tmp_path / "o.pt").write_bytes(b"before")
    with pytest.raises(UnsupportedTypeError, match=r"test_claims\.Own.*--unsafe-pickle"):
        convert(tmp_path / "a", tmp_path / "o.pt", overwrite=True)
    assert (tmp_path / "o.pt").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "o.pt"]
    result = convert(tmp_path / "a", tmp_path / "o.pt", overwrite=True, unsafe_pickle=True)
    assert "only with --unsafe-pickle" in result.notes[0]


# --- digests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.json", "c", "c.json.zst"])
def test_a_save_says_what_can_be_pinned(name: str, tmp_path: Path) -> None:
    state = {"w": torch.ones(2)}
    default = jsonckpt.save(state, tmp_path / name)
    assert default.pin is None
    with pytest.raises((IntegrityError, ArgumentError), match='checksum="sha256"'):
        jsonckpt.load(tmp_path / name, expected_digest=default.digest)
    strong = jsonckpt.save(state, tmp_path / name, checksum="sha256")
    assert strong.pin == strong.digest
    assert jsonckpt.load(tmp_path / name, expected_digest=strong.pin)["w"].sum() == 2


@pytest.mark.parametrize("name", ["c.json", "c", "c.json.zst"])
def test_convert_writes_what_can_be_pinned(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint), "-o", str(tmp_path / name), "--checksum", "sha256"]
    assert main(command) == 0
    digest = capsys.readouterr().out.rpartition("digest ")[2].strip()
    assert jsonckpt.load(tmp_path / name, expected_digest=digest)["epoch"] == 1
    assert main([*command, "--overwrite", "--json"]) == 0
    pin = json.loads(capsys.readouterr().out)["pin"]
    assert jsonckpt.load(tmp_path / name, expected_digest=pin)["epoch"] == 1
    assert convert(checkpoint, tmp_path / name, overwrite=True).pin is None
    assert main([str(checkpoint), "-o", "x.pt", "--checksum", "sha256"]) == 2


# --- the estimate -------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["json", "json.zst", "pt", "safetensors", "legacy-json"])
def test_a_dry_run_is_near(to: Any, tmp_path: Path) -> None:
    tied = torch.randn(300, 20)
    state = {
        "model": {"w": tied, "tied": tied, "h": torch.randn(40, 40).bfloat16()},
        "names": [f"sample {i}" for i in range(2000)],
    }
    torch.save(state, tmp_path / "in.pt")
    options = {"to": to, "dtype": "bfloat16"} if to != "legacy-json" else {"to": to}
    dry = convert(tmp_path / "in.pt", tmp_path / f"o.{to}", dry_run=True, **options)
    wet = convert(tmp_path / "in.pt", tmp_path / f"o.{to}", **options)
    assert 0.5 < dry.output_bytes / wet.output_bytes < 2
    assert dry.notes == wet.notes


def test_a_safetensors_file_as_it_is_read(tmp_path: Path) -> None:
    convert_from = {"w": torch.ones(2)}
    torch.save(convert_from, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "o.safetensors")
    found = load_safetensors(tmp_path / "o.safetensors")
    assert (found.metadata, found.ties) == ({}, {})
