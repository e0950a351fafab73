"""Files of torch.save and pickles through ``convert``: objects, programs, and what to do."""

from __future__ import annotations

import argparse
import importlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import FormatError, UnsupportedTypeError
from jsonckpt._src.commands.convert import main
from jsonckpt.convert import convert
from tests.convert.guide import files, same, unpacked

RUNS: list[str] = []


class Config:
    """An object of a program's own."""

    def __init__(self) -> None:
        self.rate = 0.5

    def __setstate__(self, state: dict[str, Any]) -> None:
        RUNS.append("Config")
        self.__dict__.update(state)


class Net(torch.nn.Module):
    """A module of a program's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        self.head = torch.nn.Linear(3, 1)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_parameter("nothing", None)
        self.loss = torch.nn.MSELoss()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.body(x))
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        RUNS.append("Net")
        super().__setstate__(state)  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RUNS.clear()


def refused(tmp_path: Path, value: Any, **options: Any) -> str:
    torch.save(value, tmp_path / "in.pt")
    with pytest.raises(UnsupportedTypeError) as caught:
        convert(tmp_path / "in.pt", tmp_path / "out.json", **options)
    assert files(tmp_path) == {"in.pt"}
    assert not RUNS
    return str(caught.value)


def test_an_object_beside_tensors_is_named_with_its_place(tmp_path: Path) -> None:
    message = refused(tmp_path, {"w": torch.ones(2), "run": {"config": Config()}})
    assert "it imports 'tests.sources.test_torch_files.Config' (at '/run/config')" in message
    assert "Leave it out by --exclude /run/config, or pass --unsafe-pickle" in message


def test_an_object_beside_tensors_can_be_left_out(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "run": {"config": Config(), "n": 1}, "list": [Config(), 5]}
    torch.save(state, tmp_path / "in.pt")
    output = tmp_path / "out.json"
    result = convert(tmp_path / "in.pt", output, exclude=["/run/config", "/list/0"], test_load=True)
    same({"w": torch.ones(2), "run": {"n": 1}, "list": [5]}, jsonckpt.load(output))
    assert result.left_out == ["/run/config", "/list/0"]
    convert(tmp_path / "in.pt", output, include=["/w"], overwrite=True)
    same({"w": torch.ones(2), "run": {"n": 1}, "list": [5]}, jsonckpt.load(output))
    assert not RUNS


def test_an_object_that_is_not_excluded_is_still_refused(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "a": Config(), "b": Config()}
    message = refused(tmp_path, state, exclude=["/a"])
    assert "(at '/b')" in message


class Hashed(Config):
    def __hash__(self) -> int:
        return 1


PLACES: dict[str, tuple[Any, str]] = {
    "set": ({"a": {1}, "x": {Hashed()}}, "/x"),
    "namespace": ({"a": {1}, "x": argparse.Namespace(c=Config())}, "/x"),
    "key": ({"a": {1}, "x": {Hashed(): 5, "y": 1}}, "/x/*"),
    "tuple": ({"a": {1}, "x": (Config(),)}, "/x/0"),
    "class": ({"a": {1}, "x": Config}, "/x"),
    "function": ({"a": {1}, "x": torch.relu}, "/x"),
    "structure": ({"a": {1}, "x": np.zeros(2, [("a", "f4")])}, "/x"),
    "objects": ({"a": {1}, "x": np.array([1, None], object)}, "/x"),
    "storage": ({"a": {1}, "x": torch.ones(2).untyped_storage()}, "/x"),
}


@pytest.mark.parametrize("name", PLACES)
def test_objects_anywhere_can_be_left_out(name: str, tmp_path: Path) -> None:
    state, place = PLACES[name]
    message = refused(tmp_path, state)
    assert "--exclude /x" in message or "--exclude '/x" in message
    convert(tmp_path / "in.pt", tmp_path / "out.json", exclude=[place])
    assert jsonckpt.load(tmp_path / "out.json")["a"] == {1}
    assert not RUNS


def test_arrays_of_structures_are_named(tmp_path: Path) -> None:
    message = refused(tmp_path, {"x": np.zeros(2, [("a", "f4")])})
    assert "this file has NumPy arrays of structures or objects (at '/x')" in message


def test_the_first_ten_names_are_shown(tmp_path: Path) -> None:
    content = b"(" + b"".join(f"cown.module\nName{n}\n".encode() for n in range(12)) + b"l."
    (tmp_path / "in.pkl").write_bytes(content)
    with pytest.raises(UnsupportedTypeError, match=r"'own\.module\.Name9' and 2 more") as caught:
        convert(tmp_path / "in.pkl", tmp_path / "out.json")
    assert "Name10" not in str(caught.value)


def test_a_pickled_module_says_what_to_pass(tmp_path: Path) -> None:
    message = refused(tmp_path, Net())
    assert "Pass --state-dict, which takes the state dicts of objects without their code" in message
    assert "--exclude" not in message


def test_a_module_that_was_loaded_says_what_to_pass(tmp_path: Path) -> None:
    torch.save({"net": torch.nn.Linear(1, 1)}, tmp_path / "in.pt")
    with pytest.raises(UnsupportedTypeError, match=r"'Linear'.*--state-dict takes its state dict"):
        convert(tmp_path / "in.pt", tmp_path / "out.json", unsafe_pickle=True)
    assert files(tmp_path) == {"in.pt"}


def trained() -> dict[str, Any]:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return {"net": net, "optimizer": optimizer, "schedule": [scheduler], "epoch": 3}


@pytest.mark.parametrize("unsafe", [False, True])
def test_state_dict_takes_those_of_objects(unsafe: bool, tmp_path: Path) -> None:
    objects = trained()
    torch.save(objects, tmp_path / "in.pt")
    result = convert(
        tmp_path / "in.pt",
        tmp_path / "out.json",
        test_load=True,
        state_dict=True,
        unsafe_pickle=unsafe,
    )
    expected = {
        "net": objects["net"].state_dict(),
        "optimizer": objects["optimizer"].state_dict(),
        "schedule": [objects["schedule"][0].state_dict()],
        "epoch": 3,
    }
    found = jsonckpt.load(tmp_path / "out.json")
    same(expected, found)
    assert found["net"]._metadata == expected["net"]._metadata
    assert "took the state dict of 'tests.sources.test_torch_files.Net', 'torch.optim" in str(
        result.notes
    )
    assert bool(RUNS) == unsafe
    # Without its code, what a class of its own adds is not known.
    assert any("not known: what state_dict() of" in note for note in result.notes) != unsafe
    fresh = Net()
    fresh.load_state_dict(found["net"])


def test_a_whole_module_becomes_its_state_dict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save(model, tmp_path / "in.pt")
    assert main([str(tmp_path / "in.pt"), "-o", str(tmp_path / "o.pt"), "--state-dict"]) == 0
    same(model.state_dict(), torch.load(tmp_path / "o.pt", weights_only=True))
    assert "note   took the state dict of 'torch.nn.modules.container.Sequential'" in (
        capsys.readouterr().out
    )


def test_state_dict_where_there_is_no_object(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "in.pt")
    result = convert(tmp_path / "in.pt", tmp_path / "out.json", state_dict=True)
    assert "no object with a state dict was found" in result.notes


def test_hostile_modules(tmp_path: Path) -> None:
    deep: Any = torch.nn.Sequential()
    for _ in range(150):
        deep = torch.nn.Sequential(deep)
    wide: Any = torch.nn.Sequential(torch.nn.Linear(1, 1))
    for _ in range(60):
        wide = torch.nn.Sequential(wide, wide)
    loop = torch.nn.Sequential()
    loop._modules["0"] = loop
    for model in (deep, wide, loop):
        torch.save(model, tmp_path / "in.pt")
        with pytest.raises(jsonckpt.LimitError, match="nested too deeply"):
            convert(tmp_path / "in.pt", tmp_path / "out.json", state_dict=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_packed_and_unpacked(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "in.pt"))
    for source in (tmp_path / "in.pt", unpacked(tmp_path / "in.pt", tmp_path / "in")):
        with pytest.raises(FormatError, match=r"a TorchScript program.*torch\.jit\.load"):
            convert(source, tmp_path / "out.json", unsafe_pickle=True)


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name in names:
            target.writestr(name, b"{}")
    return path


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("m/archive_format", "m/models/model.json"), r"torch\.export.*torch\.export\.load"),
        (("serialized_exported_program.json", "version"), r"torch\.export"),
        (("p/.data/extern_modules", "p/.data/version"), r"torch\.package.*PackageImporter"),
        (("readme.txt",), r"no data\.pkl"),
    ],
)
def test_archives_of_other_programs(names: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=words):
        convert(archive(tmp_path / "in.pt", *names), tmp_path / "out.json")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_torch_export_and_package_as_torch_writes_them(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "in.pt2")
    with pytest.raises(FormatError, match=r"torch\.export"):
        convert(tmp_path / "in.pt2", tmp_path / "out.json")
    with importlib.import_module("torch.package").PackageExporter(
        str(tmp_path / "in.pt")
    ) as exporter:
        exporter.save_pickle("model", "model.pkl", {"w": torch.ones(1)})
    with pytest.raises(FormatError, match=r"torch\.package"):
        convert(tmp_path / "in.pt", tmp_path / "out.json")


def test_the_data_pkl_of_an_unpacked_file(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "in.pt")
    directory = unpacked(tmp_path / "in.pt", tmp_path / "in")
    with pytest.raises(FormatError, match=r"data\.pkl.*Give the directory"):
        convert(directory / "data.pkl", tmp_path / "out.json")
    convert(directory, tmp_path / "out.json", test_load=True)
    same({"w": torch.ones(2)}, jsonckpt.load(tmp_path / "out.json"))


def test_records_of_a_directory_that_are_missing_or_elsewhere(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(50_000)}, tmp_path / "in.pt")
    directory = unpacked(tmp_path / "in.pt", tmp_path / "in")
    (directory / "data" / "0").write_bytes(b"short")
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="5 bytes"):
        convert(directory, tmp_path / "out.json")
    (directory / "data" / "0").unlink()
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="data/0"):
        convert(directory, tmp_path / "out.json")


NAMES = ["state", "state.pkl", "state.pickle", "state.pt", "state.bin"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", NAMES)
def test_plain_pickles_under_any_name(name: str, protocol: int, tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "a": np.arange(3.0), "l": [0.5, 1.5], "n": 3}
    (tmp_path / name).write_bytes(pickle.dumps(state, protocol))
    result = convert(tmp_path / name, tmp_path / "out.json", test_load=True)
    same(state, jsonckpt.load(tmp_path / "out.json"))
    assert result.kind == "pickle"


def test_the_encoding_of_python_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.pkl").write_bytes(b"(dp0\nS'caf\\xe9'\np1\nF0.5\ns.")
    arguments = [str(tmp_path / "in.pkl"), "-o", str(tmp_path / "out.json")]
    assert main(arguments) == 1
    assert "--pickle-encoding latin1" in capsys.readouterr().err
    assert main([*arguments, "--pickle-encoding", "latin1"]) == 0
    assert jsonckpt.load(tmp_path / "out.json") == {"café": 0.5}
    assert main([*arguments, "--overwrite", "--pickle-encoding", "nonsense"]) == 2
    assert "pickle_encoding is 'nonsense'" in capsys.readouterr().err


def test_unsafe_code_runs_once(tmp_path: Path) -> None:
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"c": Config(), "w": torch.ones(1)}))
    with pytest.raises(UnsupportedTypeError, match="Config"):
        convert(tmp_path / "in.pkl", tmp_path / "out.json", unsafe_pickle=True)
    assert RUNS == ["Config"]


@pytest.mark.parametrize(
    "write",
    [
        lambda value, file: torch.save(value, file),
        lambda value, file: torch.save(value, file, _use_new_zipfile_serialization=False),
        lambda value, file: pickle.dump(value, file),
    ],
    ids=["zip", "stream", "pickle"],
)
def test_a_damaged_file_says_so_also_with_unsafe_pickle(
    write: Callable[[Any, Any], None], tmp_path: Path
) -> None:
    file = io.BytesIO()
    write({"w": torch.ones(2)}, file)
    (tmp_path / "in.pt").write_bytes(file.getvalue()[:-9])
    with pytest.raises((FormatError, jsonckpt.IncompleteCheckpointError), match="ends too early"):
        convert(tmp_path / "in.pt", tmp_path / "out.json", unsafe_pickle=True)
