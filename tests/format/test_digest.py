"""``expected_digest``: what is not the pinned checkpoint is refused before a payload is read."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.support import difference

STATE = {"w": torch.arange(40, dtype=torch.float32), "b": torch.ones(3), "lr": 0.001}
CONTAINERS = ["c", "c.json", "c.json.zst"]


def _stream(path: Any, **options: Any) -> Any:
    return dict(jsonckpt.stream(path, **options))


def _into(path: Any, **options: Any) -> Any:
    target = {"w": torch.zeros(40), "b": torch.zeros(3), "lr": 0.0}
    jsonckpt.load_into(target, path, **options)
    return target


def _open(path: Any, **options: Any) -> Any:
    with jsonckpt.open(path, **options) as checkpoint:
        return checkpoint.load()


READERS: dict[str, Callable[..., Any]] = {
    "load": jsonckpt.load,
    "load_into": _into,
    "open": _open,
    "stream": _stream,
}


def _forbid_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a payload was decoded")

    monkeypatch.setattr("jsonckpt._src.format.chunk_codec.ChunkCodec.decode_into", refuse)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("checksum", ["sha256", "blake3"])
def test_the_pinned_checkpoint_is_read(
    tmp_path: Path, checksum: str, container: str, reader: str
) -> None:
    if checksum == "blake3":
        pytest.importorskip("blake3")
    result = jsonckpt.save(STATE, tmp_path / container, checksum=checksum)
    algorithm = checksum if "." in container else "sha256"
    assert result.digest.startswith(f"{algorithm}:")
    found = READERS[reader](tmp_path / container, expected_digest=result.digest)
    if reader != "stream":
        assert difference(STATE, found) is None
    else:
        assert torch.equal(found["/w"], torch.arange(40.0))
    assert jsonckpt.verify(tmp_path / container, expected_digest=result.digest)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_another_save_is_refused_before_a_payload_is_read(
    tmp_path: Path, container: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = jsonckpt.save(STATE, tmp_path / container, checksum="sha256")
    second = jsonckpt.save(STATE, tmp_path / container, checksum="sha256")
    assert first.digest != second.digest
    _forbid_payloads(monkeypatch)
    with pytest.raises(jsonckpt.IntegrityError, match="no tensor was read") as caught:
        READERS[reader](tmp_path / container, expected_digest=first.digest)
    assert first.digest in str(caught.value)
    assert second.digest in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_weak_checksum_pins_nothing(
    tmp_path: Path, container: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = jsonckpt.save(STATE, tmp_path / container)
    digest = result.digest if container == "c" else "sha256:" + "0" * 64
    _forbid_payloads(monkeypatch)
    with pytest.raises(jsonckpt.IntegrityError, match='again with checksum="sha256"'):
        READERS[reader](tmp_path / container, expected_digest=digest)
    if container != "c":
        with pytest.raises(ValueError, match="xxh3_128 checksum, which finds accidents"):
            READERS[reader](tmp_path / container, expected_digest=result.digest)


def test_no_byte_can_change_under_a_pinned_digest(tmp_path: Path) -> None:
    """Every byte of a small directory and a small file, one bit each."""
    small = {"w": torch.arange(6, dtype=torch.uint8), "n": 3}
    for container in ("c", "c.json"):
        path = tmp_path / container
        digest = jsonckpt.save(small, path, checksum="sha256").digest
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            data = file.read_bytes()
            for position in range(len(data)):
                changed = bytearray(data)
                changed[position] ^= 1 << position % 7
                file.write_bytes(changed)
                with pytest.raises(jsonckpt.JsonckptError):
                    jsonckpt.load(path, expected_digest=digest)
            file.write_bytes(data)
        assert jsonckpt.load(path, expected_digest=digest)["n"] == 3


def test_an_edit_by_hand_is_another_checkpoint(tmp_path: Path) -> None:
    digest = jsonckpt.save(STATE, tmp_path, checksum="sha256").digest
    manifest = tmp_path / "manifest.json"
    lines = manifest.read_text().replace("0.001", "0.002").splitlines()
    manifest.write_text("\n".join([*lines[:-1], '"seal":null}\n']))
    assert jsonckpt.load(tmp_path)["lr"] == 0.002
    with pytest.raises(jsonckpt.IntegrityError, match="the manifest has the digest"):
        jsonckpt.load(tmp_path, expected_digest=digest)
    report = jsonckpt.verify(tmp_path, expected_digest=digest)
    assert [type(problem) for problem in report.problems] == [jsonckpt.IntegrityError]


def test_a_pipe_is_refused_at_its_end() -> None:
    pipe = io.BytesIO()
    digest = jsonckpt.save(STATE, pipe, checksum="sha256").digest
    wrong = "sha256:" + "0" * 64
    data = pipe.getvalue()
    assert jsonckpt.load(io.BytesIO(data), expected_digest=digest)["lr"] == 0.001
    with pytest.raises(jsonckpt.IntegrityError, match="the file has the digest"):
        jsonckpt.load(io.BytesIO(data), expected_digest=wrong)
    assert len(dict(jsonckpt.stream(io.BytesIO(data), expected_digest=digest))) == 2
    tensors = jsonckpt.stream(io.BytesIO(data), expected_digest=wrong)
    assert [next(tensors)[0], next(tensors)[0]] == ["/w", "/b"]
    with pytest.raises(jsonckpt.IntegrityError, match="the file has the digest"):
        next(tensors)


def test_a_large_file_is_streamed_under_its_digest(tmp_path: Path) -> None:
    """The limit on what a file claims is that of its own size."""
    state = {"w": torch.zeros(1000)}
    digest = jsonckpt.save(state, tmp_path / "c.json", checksum="sha256").digest
    limits = jsonckpt.Limits(total_floor=0, expansion=10)
    found = dict(jsonckpt.stream(tmp_path / "c.json", expected_digest=digest, limits=limits))
    assert torch.equal(found["/w"], state["w"])


@pytest.mark.parametrize("digest", ["", "sha256:" + "A" * 64, "md5:" + "0" * 32, "0" * 64, 7])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_digest_is_wrong_usage(tmp_path: Path, reader: str, digest: Any) -> None:
    jsonckpt.save(STATE, tmp_path / "c", checksum="sha256")
    with pytest.raises(ValueError, match="64 lower-case hexadecimal digits"):
        READERS[reader](tmp_path / "c", expected_digest=digest)


@pytest.mark.parametrize("reader", READERS)
def test_without_verify_nothing_is_pinned(tmp_path: Path, reader: str) -> None:
    digest = jsonckpt.save(STATE, tmp_path / "c", checksum="sha256").digest
    with pytest.raises(ValueError, match="needs verify=True"):
        READERS[reader](tmp_path / "c", expected_digest=digest, verify=False)


def test_blake3_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("blake3")
    jsonckpt.save(STATE, tmp_path / "there", checksum="blake3")
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(jsonckpt.JsonckptError, match=r"pip install 'jsonckpt\[blake3\]'"):
        jsonckpt.save(STATE, tmp_path / "c", checksum="blake3")
    assert not (tmp_path / "c").exists()
    with pytest.raises(jsonckpt.JsonckptError, match=r"pip install 'jsonckpt\[blake3\]'"):
        jsonckpt.load(tmp_path / "there")
