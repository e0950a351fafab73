"""Models of TensorFlow.js: every form, what TensorFlow.js makes of them, and hostile ones.

TensorFlow.js 4.22.0 wrote the files in ``tests/data/tensorflowjs``, by
``tests/programs/write_tensorflowjs.mjs``. ``expected.json`` has the values as it reads them.
"""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import Limits
from jsonckpt._src.errors import (
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    LimitError,
    UnsafePathError,
)
from jsonckpt.convert import convert
from tests.convert.guide import DATA, files
from tests.support import lacking

MODELS = DATA / "tensorflowjs"
PROGRAMS = Path(__file__).parents[1] / "programs"
NAMES = [
    "layers/model.json",
    "with_optimizer/model.json",
    "artifacts.json",
    "manifest/weights_manifest.json",
]


def read(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    result = convert(source, output, test_load=True, overwrite=True, **options)
    assert result.kind == "TensorFlow.js model"
    state = jsonckpt.load(output)
    assert isinstance(state, dict)
    return state


def compare(state: dict[str, Any], expected: dict[str, Any]) -> None:
    found = {**state["weights"], **state.get("optimizer_weights", {})}
    assert list(found) == list(expected)
    for name, weight in expected.items():
        tensor = found[name]
        if weight["dtype"] == "string":
            assert np.array(tensor).reshape(-1).tolist() == weight["values"]
            assert list(np.array(tensor).shape) == weight["shape"]
            continue
        assert str(tensor.dtype) == f"torch.{weight['dtype']}"
        assert list(tensor.shape) == weight["shape"]
        flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        assert flat.reshape(-1).tolist() == weight["values"], name


@pytest.mark.parametrize("name", NAMES)
def test_as_tensorflowjs_reads_it(name: str, tmp_path: Path) -> None:
    expected = json.loads((MODELS / "expected.json").read_text("utf-8"))
    compare(read(MODELS / name, tmp_path / "out.json"), expected[name])


def test_other_members_are_kept(tmp_path: Path) -> None:
    source = json.loads((MODELS / "with_optimizer" / "model.json").read_text("utf-8"))
    state = read(MODELS / "with_optimizer", tmp_path / "out.json")
    kept = {key: value for key, value in source.items() if key != "weightsManifest"}
    assert {key: state[key] for key in kept} == kept
    assert len(state["optimizer_weights"]) == 13
    without = read(MODELS / "with_optimizer", tmp_path / "out.json", optimizer=False)
    assert "optimizer_weights" not in without


def test_safetensors_has_the_names_of_the_weights(tmp_path: Path) -> None:
    convert(MODELS / "layers", tmp_path / "out.safetensors", test_load=True)
    found = convert(tmp_path / "out.safetensors", tmp_path / "out.json").tensors
    assert sorted(name for name, _, _ in found)[-1] == "/dense_Dense1~1kernel"


def test_quantized_weights_are_named(tmp_path: Path) -> None:
    result = convert(MODELS / "manifest", tmp_path / "out.json")
    assert result.notes == [
        "quantized weights are what TensorFlow.js makes of them: 1 from uint8 to float32, "
        "1 from uint16 to float32, 1 from uint8 to int32, 1 from float16 to float32"
    ]


@pytest.mark.parametrize(
    "write",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: "data:application/octet-stream;base64," + base64.b64encode(data).decode(),
        lambda data: [base64.b64encode(part).decode() for part in (data[:10], data[10:])],
        list,
        lambda data: {str(place): byte for place, byte in enumerate(data)},
        lambda data: {"type": "Buffer", "data": list(data)},
    ],
    ids=["base64", "data-url", "parts", "bytes", "typed-array", "buffer"],
)
@pytest.mark.parametrize("count", [5, 20_000])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_weights_inside_the_text(
    write: Callable[[bytes], Any], count: int, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    values = np.arange(count, dtype=np.float32) / 3
    model = {
        "modelTopology": {"a": [1, 2]},
        "weightSpecs": [{"name": "w", "shape": [count], "dtype": "float32"}],
        "weightData": write(values.tobytes()),
    }
    for number, text in enumerate((model, {"name": "mine", "artifacts": model})):
        source = tmp_path / f"{number}.json"
        source.write_bytes(pack(json.dumps(text).encode()))
        state = read(source, tmp_path / "out.json")
        state = state.get("artifacts", state)
        assert state["weights"]["w"].tolist() == values.tolist()
        assert state["modelTopology"] == {"a": [1, 2]}


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_large_text_is_known_by_its_first_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsonckpt._src.sources.tensorflowjs._SEARCHED", 10)
    read(MODELS / name, tmp_path / "out.json")


def manifest(directory: Path, weights: Any, shards: dict[str, bytes], **more: Any) -> Path:
    for name, data in shards.items():
        (directory / name).write_bytes(data)
    group = {"paths": list(shards), "weights": weights}
    path = directory / "model.json"
    path.write_text(json.dumps({"modelTopology": {}, "weightsManifest": [group], **more}))
    return path


def spec(**changes: Any) -> dict[str, Any]:
    return {"name": "w", "shape": [4], "dtype": "float32", **changes}


QUANTIZED = {"dtype": "uint8", "scale": 1.5, "min": -1}
SHORT, DAMAGED = IncompleteCheckpointError, FormatError
FOUR = {"a": b"...."}
REFUSED: list[tuple[type[JsonckptError], str, Any, dict[str, bytes]]] = [
    (SHORT, "'a' has 15 bytes where the manifest says 16", spec(), {"a": b"." * 15}),
    (DAMAGED, "'a' has 17 bytes where the manifest says 16", spec(), {"a": b"." * 17}),
    (SHORT, "'b' is too short: all 3", spec(), {"a": b"." * 6, "b": b"." * 5, "c": b"." * 4}),
    (SHORT, "'c' is too short: all 3", spec(), {"a": b"." * 6, "b": b"." * 6, "c": b"." * 3}),
    (SHORT, "has 4 bytes", spec(shape=[1 << 50]), FOUR),
    (LimitError, "too large", spec(shape=[1 << 50, 1 << 50]), FOUR),
    (LimitError, "too large", spec(shape=[1] * 100), FOUR),
    (DAMAGED, "a list of sizes", spec(shape=[-1]), FOUR),
    (DAMAGED, "a list of sizes", spec(shape="4"), FOUR),
    (DAMAGED, "unknown dtype 'float8'", spec(dtype="float8"), FOUR),
    (DAMAGED, "unknown dtype 'None'", spec(dtype=None), FOUR),
    (DAMAGED, "other than 0 and 1", spec(dtype="bool"), {"a": b"\1\0\2\1"}),
    (DAMAGED, "without a name", {"shape": [1]}, FOUR),
    (DAMAGED, "without a name", [1], FOUR),
    (DAMAGED, "without scale and min", spec(quantization={"dtype": "uint8"}), FOUR),
    (DAMAGED, "is not known", spec(quantization={"dtype": "int4"}), FOUR),
    (DAMAGED, "is not known", spec(dtype="int32", quantization={"dtype": "float16"}), FOUR),
    (DAMAGED, "is an object", spec(quantization=7), FOUR),
    (DAMAGED, "beyond int32", spec(dtype="int32", quantization={**QUANTIZED, "min": 1e20}), FOUR),
    (SHORT, "within a string", spec(dtype="string"), {"a": b"\2\0\0\0ab" * 3}),
    (SHORT, "within a string", spec(dtype="string", shape=[1]), {"a": b"\xff\xff\0\0ab"}),
    (LimitError, "bytes of text", spec(dtype="string", shape=[1]), {"a": b"\xff" * 6}),
    (DAMAGED, "manifest says 6", spec(dtype="string", shape=[1]), {"a": b"\2\0\0\0abc"}),
    (DAMAGED, "LFS.*lfs pull", spec(), {"a": b"version https://git-lfs.github.com/spec/v1"}),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[1][:30])
def test_what_is_refused(case: Any, tmp_path: Path) -> None:
    kind, words, weight, shards = case
    source = manifest(tmp_path, [weight], shards)
    with pytest.raises(kind, match=words) as caught:
        convert(source, tmp_path / "out.json")
    assert caught.value.file == str(source)
    assert files(tmp_path) == {"model.json", *shards}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../w.bin", "does not lie beside model.json"),
        ("a/../../w.bin", "does not lie beside"),
        ("/etc/passwd", "does not lie beside"),
        ("https://example.org/w.bin", "is a URL.*Download it"),
        ("", "is a text"),
        ("w\0.bin", "is a text"),
        (7, "is a text"),
        (".", "does not lie beside"),
    ],
)
def test_shards_lie_beside_the_manifest(name: Any, words: str, tmp_path: Path) -> None:
    source = manifest(tmp_path, [spec()], {})
    text = json.loads(source.read_text())
    text["weightsManifest"][0]["paths"] = [name]
    source.write_text(json.dumps(text))
    with pytest.raises(FormatError, match=words):
        convert(source, tmp_path / "out.json")


def test_missing_and_repeated_shards(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "layers", tmp_path / "m")
    source = tmp_path / "m" / "model.json"
    (tmp_path / "m" / "group1-shard2of3.bin").unlink()
    with pytest.raises(
        IncompleteCheckpointError, match=r"group1-shard2of3\.bin' is missing\. Copy"
    ):
        convert(source, tmp_path / "out.json")
    group = {"paths": ["a", "a"], "weights": [spec()]}
    source.write_text(json.dumps({"weightsManifest": [group]}))
    (tmp_path / "m" / "a").write_bytes(b"." * 8)
    with pytest.raises(FormatError, match="the shard 'a' twice"):
        convert(source, tmp_path / "out.json")
    source = manifest(tmp_path, [spec(), spec()], {"w": b"." * 32})
    with pytest.raises(FormatError, match="the name stands twice"):
        convert(source, tmp_path / "out.json")


def test_a_directory_with_shards_by_any_name(tmp_path: Path) -> None:
    """Teachable Machine calls the shard weights.bin and adds metadata.json."""
    (tmp_path / "m").mkdir()
    manifest(tmp_path / "m", [spec()], {"weights.bin": bytes(16)})
    (tmp_path / "m" / "metadata.json").write_text("{}")
    assert convert(tmp_path / "m", tmp_path / "out.json").notes == [
        "taken: model.json",
        "not taken, and no checkpoint: copy them as they are: metadata.json",
    ]


def test_links_can_be_refused(tmp_path: Path) -> None:
    source = manifest(tmp_path, [spec()], {})
    (tmp_path / "real").write_bytes(bytes(16))
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "real").write_bytes(bytes(16))
    (tmp_path / "linked").symlink_to("inside")
    for name in ("link", "linked/real", "inside/real"):
        group = {"paths": [name], "weights": [spec()]}
        source.write_text(json.dumps({"weightsManifest": [group]}))
        convert(source, tmp_path / "out.json", overwrite=True)
        if name != "inside/real":
            with pytest.raises(UnsafePathError, match="symbolic link"):
                convert(source, tmp_path / "out2.json", limits=Limits(links=0))
    convert(source, tmp_path / "out2.json", limits=Limits(links=0))


def test_the_model_without_its_weights(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"format": "layers-model", "modelTopology": {}}')
    with pytest.raises(FormatError, match="without weights"):
        convert(tmp_path / "m.json", tmp_path / "out.json")
    missing: list[Any] = [{}, None, [], [{}]]
    for lost in missing:
        text = {"weightSpecs": [spec()], "weightData": lost}
        (tmp_path / "m.json").write_text(json.dumps(text))
        with pytest.raises(FormatError, match=r"an ArrayBuffer as \{\}"):
            convert(tmp_path / "m.json", tmp_path / "out.json")
    odd: list[Any] = ["a!", [300], 7, [[]], {"a": 1}]
    for wrong in odd:
        text = {"weightSpecs": [spec()], "weightData": wrong}
        (tmp_path / "m.json").write_text(json.dumps(text))
        with pytest.raises(FormatError):
            convert(tmp_path / "m.json", tmp_path / "out.json")


def test_cut_off_anywhere(tmp_path: Path) -> None:
    text = (MODELS / "manifest" / "weights_manifest.json").read_bytes()
    source = tmp_path / "weights_manifest.json"
    for length in range(0, len(text), 7):
        source.write_bytes(text[:length])
        with pytest.raises(JsonckptError):
            convert(source, tmp_path / "out.json")
    assert files(tmp_path) == {"weights_manifest.json"}


@pytest.mark.parametrize(
    "text",
    [
        b'{"weightsManifest": ' + b"[" * 100_000,
        b'{"weightsManifest": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"weightsManifest": [], "weightsManifest": []}',
        b'{"weightSpecs": [1e999999, ' + b"9" * 5000 + b"]}",
        b'{"weightsManifest": [7]}',
        b'{"weightsManifest": [{"paths": [], "weights": [[]]}]}',
        b'{"weightSpecs": [{}], "weightData": "AAAA"}',
        b'[{"paths": [[]], "weights": []}]',
    ],
)
def test_hostile_text(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(text)
    with pytest.raises(JsonckptError):
        convert(tmp_path / "model.json", tmp_path / "out.json")


def test_limits_on_marks(tmp_path: Path) -> None:
    source = manifest(tmp_path, [spec()], {"w": bytes(16)}, many=[{} for _ in range(5000)])
    with pytest.raises(LimitError, match="marks"):
        convert(source, tmp_path / "out.json", limits=Limits(marks=1000))


def test_other_json_that_mentions_the_names(tmp_path: Path) -> None:
    text = {"paths": ["a"], "state_dict": {"w": [1.0, 2.0], "weightSpecs": [0.5]}}
    (tmp_path / "x.json").write_text(json.dumps(text))
    assert convert(tmp_path / "x.json", tmp_path / "out.json").kind == "JSON of another program"


@pytest.mark.parametrize("option", [[], ["--float16"]], ids=["models", "float16"])
def test_the_program_itself(option: list[str], tmp_path: Path) -> None:
    if shutil.which("node") is None or not (PROGRAMS / "node_modules").is_dir():
        lacking("programs", "needs node, and npm install in tests/programs")
    output = tmp_path / "out"
    script = PROGRAMS / "write_tensorflowjs.mjs"
    subprocess.run(["node", script, output, *option], check=True, capture_output=True)
    expected = json.loads((tmp_path / "out" / "expected.json").read_text("utf-8"))
    assert expected
    for name, weights in expected.items():
        compare(read(tmp_path / "out" / name, tmp_path / "out.json"), weights)
