"""What ``kaggle-init`` makes, taken by the create and version code of the package ``kaggle``."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.kaggle.api import kaggle_init
from tests.support import lacking

ID = "me/text-gen-checkpoint"


class Client:
    """Stands for the client of the network: keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.datasets = SimpleNamespace(dataset_api_client=self)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Client]:
        yield self

    def _keep(self, request: Any) -> Any:
        self.requests.append(request)
        return SimpleNamespace(error="", status="ok")

    create_dataset = create_dataset_version = _keep


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, logged in as nobody, without a network; and what it uploads."""
    if sys.version_info < (3, 11):
        pytest.skip("kaggle needs Python 3.11")
    for name, value in (
        ("KAGGLE_USERNAME", "me"), ("KAGGLE_KEY", "x"), ("KAGGLE_CONFIG_DIR", str(tmp_path / "c")),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from kaggle.api.kaggle_api_extended import KaggleApi
            from requests import HTTPError
    except ImportError as error:
        lacking("kaggle", f"the package kaggle plays the upload: {error}")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    api = KaggleApi()
    api.authenticate()
    uploaded: list[str] = []

    def upload(path: str, *_: Any, **__: Any) -> str:
        uploaded.append(os.path.basename(path))
        return f"token-{len(uploaded)}"

    def status(*_: Any, **__: Any) -> Any:
        raise HTTPError("not found")

    client = Client()
    monkeypatch.setattr(api, "_upload_blob", upload)
    monkeypatch.setattr(api, "dataset_status", status)
    monkeypatch.setattr(api, "build_kaggle_client", client)
    return SimpleNamespace(api=api, uploaded=uploaded, client=client)


@pytest.mark.filterwarnings("ignore")
def test_create_and_version_take_it(kaggle: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    jsonckpt.save({"w": torch.rand(5000), "step": 600}, run, max_shard_size=8_000)
    (run / "training_history.json").write_text("{}")
    made = kaggle_init(
        run,
        id=ID,
        title="Text generation",
        subtitle="A small GPT-2, trained on Kaggle",
        license="CC0-1.0",
        keywords=["nlp"],
    )
    kaggle.api.validate_dataset_string(made.metadata["id"])
    kaggle.api.dataset_create_new(str(run), quiet=True)
    expected = sorted(path.name for path in run.iterdir() if path.name != "dataset-metadata.json")
    assert sorted(kaggle.uploaded) == expected
    assert len(expected) == made.files
    assert {"manifest.json", "jsonckpt_reader.py", "checkpoint_to_json.py"} <= set(expected)
    (request,) = kaggle.client.requests
    assert (request.owner_slug, request.slug) == ("me", "text-gen-checkpoint")
    assert (request.title, request.license_name) == ("Text generation", "CC0-1.0")
    assert (request.subtitle, request.is_private) == ("A small GPT-2, trained on Kaggle", True)
    assert list(request.category_ids) == ["nlp"]
    assert len(request.files) == len(expected)

    kaggle.uploaded.clear()
    kaggle.api.dataset_create_version(str(run), "step 700", quiet=True)
    assert sorted(kaggle.uploaded) == expected
    version = kaggle.client.requests[-1]
    assert (version.owner_slug, version.dataset_slug) == ("me", "text-gen-checkpoint")
    assert version.body.version_notes == "step 700"


@pytest.mark.filterwarnings("ignore")
def test_what_is_uploaded_is_a_whole_checkpoint(kaggle: Any, tmp_path: Path) -> None:
    """Names that the upload leaves out are not those of a checkpoint."""
    run, there = tmp_path / "run", tmp_path / "input" / "datasets" / "me" / "text-gen-checkpoint"
    jsonckpt.save({"w": torch.rand(500), "step": 600}, run)
    kaggle_init(run, id=ID)
    kaggle.api.dataset_create_new(str(run), quiet=True)
    there.mkdir(parents=True)
    for name in kaggle.uploaded:
        (there / name).write_bytes((run / name).read_bytes())
    newest = jsonckpt.find(tmp_path / "input").newest
    assert newest is not None
    assert newest.path == there
    assert jsonckpt.verify(there).ok


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "me/short"},
        {"title": "short"},
        {"subtitle": "short"},
        {"licenses": []},
        {"resources": [{"path": "gone"}]},
        {"resources": [{"path": "manifest.json"}] * 2},
    ],
)
def test_both_refuse_the_same(kaggle: Any, tmp_path: Path, wrong: dict[str, Any]) -> None:
    run = tmp_path / "run"
    jsonckpt.save({"w": torch.rand(5)}, run)
    kaggle_init(run, id=ID, with_reader=False)
    file = run / "dataset-metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}))
    with pytest.raises(ValueError, match=r".") as theirs:
        kaggle.api.dataset_create_new(str(run), quiet=True)
    assert not isinstance(theirs.value, jsonckpt.JsonckptError)
    with pytest.raises(jsonckpt.ArgumentError):
        kaggle_init(run, with_reader=False)
    assert not kaggle.uploaded
