"""What files and directories are, by their content, and what a message says to do with them.

The files in ``tests/data/kinds`` are the first 1,024 bytes of what these programs wrote: onnx
1.23.2, gguf 0.19.0, h5py 3.16.0, xgboost 3.2.0, lightgbm 4.7.0, scikit-learn 1.9.1, joblib 1.6.0,
flax 0.12.8, tensorboard 2.21.0.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

import jsonckpt
from jsonckpt._src.errors import (
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
)
from jsonckpt._src.sources.kinds import HEAD, Look, kind_of
from jsonckpt.convert import convert
from tests.convert.guide import DATA

KINDS = DATA / "kinds"


def refused(path: Path, words: str) -> str:
    """The message, which names the path, the kind and the way out."""
    with pytest.raises(JsonckptError, match=words) as caught:
        convert(path, path.parent / "out.json")
    assert str(caught.value).startswith(str(path))
    assert caught.value.hint
    return str(caught.value)


PROGRAMS = {
    "onnx_helper.onnx": r"ONNX.*onnx\.load",
    "from_pytorch.onnx": r"ONNX.*onnx\.load",
    "model.gguf": r"GGUF.*gguf\.dequantize",
    "h5py.h5": "HDF5.*h5py",
    "xgboost.json": "XGBoost.*decision trees",
    "xgboost.ubj": "XGBoost.*decision trees",
    "lightgbm.txt": "LightGBM.*decision trees",
    "lightgbm.json": "LightGBM.*decision trees",
    "sklearn.joblib": "scikit-learn.*savez",
    "sklearn.pkl": "scikit-learn.*savez",
    "sklearn_protocol0.pkl": "scikit-learn.*savez",
    "sklearn_compressed.joblib": r"zlib.*joblib\.load",
    "dict.joblib": r"joblib.*joblib\.load",
    "flax_model.msgpack": "msgpack.*Flax.*msgpack_restore",
    "events.out.tfevents": "TensorBoard",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_files_of_other_programs(name: str, tmp_path: Path) -> None:
    for target in (name, "best.pt"):  # the name says nothing
        shutil.copy(KINDS / name, tmp_path / target)
        refused(tmp_path / target, PROGRAMS[name])


def test_every_such_file_has_a_row() -> None:
    assert {path.name for path in KINDS.iterdir()} == set(PROGRAMS)


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("best.pt")
        info.size = len(torch_file())
        archive.addfile(info, io.BytesIO(torch_file()))
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n"
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "zeros": (bytes(9000), "zero bytes.*download it again"),
    "lfs": (LFS, "Git LFS pointer.*git lfs pull"),
    "lfs-crlf": (LFS.replace(b"\n", b"\r\n"), "Git LFS pointer.*git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s9--0a\n", "git-annex.*git annex get"),
    "dvc": (b"outs:\n- md5: 0a\n  size: 9\n", "DVC.*dvc pull"),
    "html": (b"\n<!DOCTYPE html>\n<html>", "web page.*logged in"),
    "html-bom": (b"\xef\xbb\xbf<html lang=en>", "web page.*logged in"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "XML.*download it again"),
    "gzipped-pt": (
        gzip.compress(torch_file()),
        r"gzip; inside is a PyTorch file, not JSON.*gunzip -c",
    ),
    "gzipped-npy": (gzip.compress(array()), r"a NumPy array.*gunzip -c"),
    "gzipped-lfs": (gzip.compress(LFS), "LFS pointer.*git lfs pull"),
    "gzipped-own": (
        gzip.compress(b'{"format":"jsonckpt.shard","version":1}'),
        "inside is a jsonckpt checkpoint.*gunzip -c",
    ),
    "keras-json": (
        b'{"class_name": "Sequential", "config": {"name": "s", "layers": []}}',
        r"architecture of a Keras model.*w\.numpy",
    ),
    "tar-gz": (gzip.compress(tarred()), r"tar archive.*tar xf"),
    "zst-pt": (zstandard.compress(torch_file()), r"zstd; inside.*PyTorch file.*unzstd -c"),
    "tar": (tarred(), "tar archive.*tar xf"),
    "xz": (lzma.compress(torch_file()), "xz.*unxz"),
    "bz2": (bz2.compress(torch_file()), "bzip2.*bunzip2"),
    "lz4": (b"\x04\x22\x4d\x18\x64", "lz4.*lz4 -dc"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "7-Zip.*7z x"),
    "rar": (b"Rar!\x1a\x07\x01\0", "RAR.*unrar"),
    "zip-of-one": (zipped(**{"best.pt": torch_file()}), "holds 'best.pt'.*Unzip it"),
    "zip-of-two": (
        zipped(**{"a/1.pt": torch_file(), "a/2.pt": b"", "a/log.txt": b""}),
        "holds 'a/1.pt', 'a/2.pt'. Unzip it",
    ),
    "zip-of-none": (zipped(**{"readme.txt": b""}), "no data.pkl, but 'readme.txt'"),
    "zip-unpacked": (zipped(**{"up/best/data.pkl": b""}), "files of a .pt.*give the directory"),
    "keras": (zipped(**{"config.json": b"{}", "model.weights.h5": b""}), r"Keras.*load_model"),
    "script": (
        zipped(**{"m/data.pkl": b"", "m/constants.pkl": b""}),
        "TorchScript.*torch.jit.load",
    ),
    "ggml": (b"lmgg\1\0\0\0", "GGML"),
    "catboost": (b"CBM1\x10\0", "CatBoost.*decision trees"),
    "tflite": (b"\x1c\0\0\0TFL3\x14", "Lite"),
    "saved_model.pb": (b"\x08\x01\x12\xf3\x0a", r"SavedModel.*tf\.saved_model\.load"),
    "model.ckpt-3.data-00000-of-00001": (
        b"\x9a\x99\x01\xbf" * 9,
        r"TensorFlow checkpoint.*tf\.train",
    ),
    "checkpoint": (b'model_checkpoint_path: "model.ckpt-3"\n', "TensorFlow.*Give the directory"),
    "part.distcp": (torch_file(), "distributed checkpoint.*directory"),
    "jsonl": (b'{"w": [1.0]}\n{"w": [2.0]}\n', "JSON Lines.*tail -n 1"),
    "long-jsonl": (2 * (json.dumps({"w": [0.5] * 5000}).encode() + b"\n"), "JSON Lines.*tail -n 1"),
    "repr": (b"{'w': tensor([1.0, 2.0])}", "Python prints.*rounded"),
    "repr-ordered": (b"OrderedDict([('w', tensor([1.]))])", "Python prints.*rounded"),
    "repr-numpy": (b"[array([1., 2.])]", "Python prints.*rounded"),
    "yaml": (b"# weights\nmodel:\n  w: [1.0]\n", r"YAML.*yaml\.safe_load"),
    "yaml-doc": (b"---\nw: 1\n", r"YAML.*yaml\.safe_load"),
    "utf-16": ('{"w": [1.0]}'.encode("utf-16"), "UTF-16.*UTF-8"),
    "javascript": (b"export default {w: [1.0]};\n", "JavaScript.*brackets"),
    "javascript-const": (b"const weights = [1.0];\n", "JavaScript.*brackets"),
    "csv": (b"0.5, -1e-3,2\n1,2,3\n", r"CSV.*numpy\.loadtxt"),
    "csv-line": (b"1,2,3", r"CSV.*numpy\.loadtxt"),
    "text": (b"Hello, world", "text that is not JSON"),
    "number": (b"7\n", "a single value"),
    "string": (b'"abc"', "a single value"),
    "sqlite": (b"SQLite format 3\0", "SQLite"),
    "png": (b"\x89PNG\r\n", "an image"),
    "noise": (b"\x99\x01\xf3\x00noise", r"unknown kind; it begins with '\\\\x99"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files(name: str, tmp_path: Path) -> None:
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, words)


def test_any_bytes_have_a_kind() -> None:
    heads = [content for content, _ in FILES.values()]
    heads += [path.read_bytes() for path in KINDS.iterdir()]
    for content in heads:
        for cut in [*range(40), *range(40, min(len(content), HEAD), 97)]:
            part = content[:cut]
            assert kind_of(Look(Path("x"), part, cut)).name


def test_the_parts_of_an_unpacked_pt(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "best.pt")
    with zipfile.ZipFile(tmp_path / "best.pt") as archive:
        archive.extractall(tmp_path / "up")
    refused(tmp_path / "up" / "best" / "data.pkl", "Give the directory that holds data.pkl")
    assert convert(tmp_path / "up", tmp_path / "out.json").kind == "unpacked PyTorch file"


def test_an_unpacked_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/a.py"):
            archive.writestr(f"m/{name}", "")
        archive.extractall(tmp_path / "up")
    assert "unpacked into a directory" in refused_below(
        tmp_path / "up", "TorchScript.*torch.jit.load"
    )


def refused_below(path: Path, words: str) -> str:
    with pytest.raises(JsonckptError, match=words) as caught:
        convert(path, path.parent / "out.json")
    assert caught.value.file is not None
    assert caught.value.file.startswith(str(path))
    return str(caught.value)


def test_plain_pickles_go_to_the_reader_of_torch() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for state in ({"w": 1}, [1, 2], {}):
            text = pickle.dumps(state, protocol)
            assert kind_of(Look(Path("x"), text, len(text))).name == "PyTorch file", text


def test_a_pickle_is_named_by_what_it_is_not_by_what_it_holds() -> None:
    """With pickle allowed, the rest of such a checkpoint can be had."""
    for content in (b"csklearn.preprocessing\nScaler\n", b"X\x07\x00\x00\x00storageq\x01"):
        text = b"\x80\x02}q\x00X\x01\x00\x00\x00s" + content + b"q\x02s."
        assert kind_of(Look(Path("x"), text, len(text))).name == "PyTorch file"


def test_a_pt_by_the_name_of_an_npz(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(torch_file())
    assert convert(tmp_path / "x.npz", tmp_path / "out.json").kind == "PyTorch file"


DIRECTORIES: dict[str, tuple[list[str], str]] = {
    "dcp": ([".metadata", "__0_0.distcp"], "distributed.*dcp_to_torch"),
    "dcp-cut": (["__0_0.distcp"], r"without its \.metadata"),
    "deepspeed": (["zero_to_fp32.py", "latest"], r"DeepSpeed.*zero_to_fp32\.py"),
    "deepspeed-step": (["mp_rank_00_model_states.pt"], "DeepSpeed"),
    "orbax": (["_METADATA", "manifest.ocdbt"], "Orbax.*restore"),
    "orbax-step": (["_CHECKPOINT_METADATA", "default/manifest.ocdbt"], "Orbax.*restore"),
    "saved-model": (["saved_model.pb", "variables/variables.index"], "SavedModel"),
    "tf": (["checkpoint", "m.index", "m.data-00000-of-00001"], r"TensorFlow.*load_checkpoint"),
    "zarr": ([".zgroup", "w/.zarray"], "Zarr"),
    "diffusers": (
        ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/x.safetensors"],
        "diffusers.*'unet', 'vae'",
    ),
    "shards": (["model-00001-of-00002.safetensors"], r"without their index.*\.index\.json"),
    "several": (["a.pt", "b.ckpt", "log.txt"], "holds 'a.pt', 'b.ckpt'. Give one"),
    "several-safetensors": (["a.safetensors", "b.safetensors"], "holds 'a.saf.*Give one"),
    "fsdp": (["pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/a.distcp"], "holds 'pyt"),
    "run": (
        ["checkpoint-5/model.safetensors", "checkpoint-10/optimizer.pt", "logs/x"],
        "'checkpoint-10', 'checkpoint-5'",
    ),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories_of_other_programs(name: str, tmp_path: Path) -> None:
    names, words = DIRECTORIES[name]
    for inside in names:
        path = tmp_path / name / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    refused(tmp_path / name, words)


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    """What transformers' Trainer leaves."""
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    directory = tmp_path / "checkpoint-500"
    directory.mkdir()
    save_file({"w": torch.ones(2)}, directory / "model.safetensors", metadata={"format": "pt"})
    torch.save({"state": {}, "param_groups": []}, directory / "optimizer.pt")
    torch.save({"last_epoch": 5}, directory / "scheduler.pt")
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        torch.save({"cpu": torch.get_rng_state()}, directory / name)
    for name in ("trainer_state", "config", "tokenizer", "tokenizer_config", "generation_config"):
        (directory / f"{name}.json").write_text("{}")
    for name in ("training_args.bin", "merges.txt", "README.md", "tf_model.h5"):
        (directory / name).write_bytes(b"x")
    return directory


def test_a_checkpoint_of_the_trainer(trainer: Path) -> None:
    result = convert(trainer, trainer.parent / "out.json", test_load=True)
    assert [name for name, _, _ in result.tensors] == ["/w"]
    assert result.notes == [
        "taken: model.safetensors",
        "not taken, and readable with --unsafe-pickle only: training_args.bin",
        "not taken: convert each on its own to keep it: optimizer.pt, rng_state_0.pth, "
        "rng_state_1.pth, scheduler.pt",
        "other weights, not taken: name the file to convert it: tf_model.h5",
        "not taken, and no checkpoint: copy them as they are: config.json, "
        "generation_config.json, merges.txt, tokenizer.json, tokenizer_config.json, "
        "trainer_state.json",
    ]
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_1.pth"):
        result = convert(trainer / name, trainer.parent / "out.json", overwrite=True)
        assert result.kind == "PyTorch file"


def test_an_adapter(trainer: Path) -> None:
    (trainer / "model.safetensors").rename(trainer / "adapter_model.safetensors")
    (trainer / "adapter_config.json").write_text("{}")
    result = convert(trainer, trainer.parent / "out.json")
    assert result.notes[0] == "taken: adapter_model.safetensors"
    assert "adapter_config.json" in result.notes[-1]


def test_one_safetensors_under_another_name(trainer: Path) -> None:
    (trainer / "model.safetensors").rename(trainer / "model.fp16.safetensors")
    result = convert(trainer, trainer.parent / "out.json")
    assert result.notes[0] == "taken: model.fp16.safetensors"


def shards(directory: Path, weight_map: dict[str, str], **tensors: list[str]) -> Path:
    from safetensors.torch import save_file

    for name, names in tensors.items():
        save_file({key: torch.ones(1) for key in names}, directory / f"{name}.safetensors")
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_indices_and_shards_that_do_not_fit(trainer: Path) -> None:
    files = {"a": "s1.safetensors", "b": "s2.safetensors"}
    index = shards(trainer, files, s1=["a", "extra"], s2=["b", "a"])
    result = convert(trainer, trainer.parent / "out.json")
    assert [name for name, _, _ in result.tensors] == ["/a", "/b", "/extra"]
    assert "in the shards, but not in the index: 1 tensor (extra)" in result.notes
    assert not [note for note in result.notes if "s1.safetensors" in note]
    index.write_text(
        json.dumps({"weight_map": {**files, "c": "s2.safetensors", "d": "s1.safetensors"}})
    )
    with pytest.raises(IncompleteCheckpointError, match=r"'c' is missing in its shard.*1 more"):
        convert(trainer, trainer.parent / "out2.json")
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(FormatError, match="names no tensor"):
        convert(trainer, trainer.parent / "out2.json")
    (trainer / "s2.safetensors").write_bytes(LFS)
    index.write_text(json.dumps({"weight_map": files}))
    with pytest.raises(FormatError, match=r"s2\.safetensors: this is a Git LFS pointer"):
        convert(trainer, trainer.parent / "out2.json")
    (trainer / "s1.safetensors").unlink()
    (trainer / "s2.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"'s1\.safetensors' is missing.*1 more"):
        convert(trainer, trainer.parent / "out2.json")


def test_a_shard_of_our_own_alone(tmp_path: Path) -> None:
    jsonckpt.save({"a": torch.ones(900)}, tmp_path / "run")
    shard = next((tmp_path / "run").glob("shard-*.json"))
    refused(shard, r"one shard of a directory.*manifest\.json")


def test_the_file_in_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(LFS)
    assert "model.safetensors: this is" in refused_below(tmp_path / "m", "git lfs pull")
