"""Names that differ by the prefixes of wrappers: the error says so, an argument removes them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import jsonckpt
from jsonckpt import ArgumentError, StateMismatchError
from jsonckpt._src.load_into.names import Prefixes
from tests.support import difference


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``DataParallel`` moves a module to a GPU where there is one."""
    module = sys.modules[torch.nn.DataParallel.__module__]
    monkeypatch.setattr(module, "_get_available_device_type", lambda: None)


def net() -> torch.nn.Module:
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape))
    return model


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    return cast(torch.nn.Module, torch.compile(model, backend="eager"))


class Encoder(torch.nn.Module):
    """A part of it may be wrapped."""

    def __init__(self, wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda part: part):
        super().__init__()
        self.encoder = wrap(net())
        self.head = torch.nn.Linear(1, 2)


WRAPPED: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "plain": (net, ""),
    "parallel": (lambda: torch.nn.DataParallel(net()), "module."),
    "compiled": (lambda: compiled(net()), "_orig_mod."),
    "both": (lambda: torch.nn.DataParallel(compiled(net())), "module._orig_mod."),
}


def hint(target: Any, path: Path, **options: Any) -> str:
    """The hint of the error. Nothing has been changed."""
    with pytest.raises(StateMismatchError, match="nothing has been changed") as caught:
        jsonckpt.load_into(target, path, **options)
    assert len(str(caught.value)) < 2_000
    return str(caught.value.hint)


def plain(state: Any) -> list[torch.Tensor]:
    return [tensor for tensor in state.values() if isinstance(tensor, torch.Tensor)]


# --- from one wrapper into another ------------------------------------------------------------


@pytest.mark.parametrize("into", WRAPPED)
@pytest.mark.parametrize("saved", WRAPPED)
@pytest.mark.parametrize("alone", [True, False])
def test_each_wrapper_into_each(tmp_path: Path, saved: str, into: str, alone: bool) -> None:
    (make, prefix), (make_target, other) = WRAPPED[saved], WRAPPED[into]
    first, model = make(), make_target()
    state: Any = first.state_dict() if alone else {"model": first.state_dict(), "epoch": 3}
    target: Any = model if alone else {"model": model, "epoch": 0}
    jsonckpt.save(state, tmp_path / "c.json")
    wanted = list(dict.fromkeys(filter(None, (prefix, other))))
    if prefix != other:
        said = hint(target, tmp_path / "c.json")
        where = "" if alone else " of target['model']"
        if not (prefix and other):
            assert said.startswith(f"All names{where} differ by the prefix '{prefix or other}': ")
        assert said.startswith(f"All names{where} ")
        # The hint is the call that works.
        call = said[said.index("strip_prefix=") + len("strip_prefix=") :].removesuffix(".")
        wanted = eval(call)
    result = jsonckpt.load_into(target, tmp_path / "c.json", strip_prefix=wanted or None)
    assert difference(plain(model.state_dict()), plain(first.state_dict())) is None
    assert (result.missing, result.unexpected, result.mismatched) == ((), (), ())
    assert len(result.loaded) == 9
    below = "" if alone else "/model"
    pair = (f"{below}/{prefix}0.weight", f"{below}/{other}0.weight")
    assert result.renamed[:1] == ((pair,) if prefix != other else ())


@contextlib.contextmanager
def process_group(directory: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/group", rank=0, world_size=1
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no processes here")
@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    first, other = net(), net()
    with process_group(tmp_path):
        wrapped = torch.nn.parallel.DistributedDataParallel(first)
        jsonckpt.save({"model": wrapped.state_dict()}, tmp_path / "c.json")
        assert "pass strip_prefix='module.'" in hint({"model": other}, tmp_path / "c.json")
        jsonckpt.load_into({"model": other}, tmp_path / "c.json", strip_prefix="module.")
        assert difference(other.state_dict(), first.state_dict()) is None
        jsonckpt.save({"model": net().state_dict()}, tmp_path / "p.json")
        jsonckpt.load_into({"model": wrapped}, tmp_path / "p.json", strip_prefix="module.")
    assert difference(first.state_dict(), jsonckpt.load(tmp_path / "p.json")["model"]) is None


@pytest.mark.parametrize("wrap", [compiled, torch.nn.DataParallel])
@pytest.mark.parametrize("back", [True, False])
def test_a_wrapped_part_of_a_model(tmp_path: Path, wrap: Any, back: bool) -> None:
    first, other = Encoder(wrap), Encoder()
    if back:
        first, other = other, first
    jsonckpt.save(first.state_dict(), tmp_path)
    part = "_orig_mod." if wrap is compiled else "module."
    said = hint(other, tmp_path)
    assert said == f"All names are the same without '{part}': pass strip_prefix='{part}'."
    jsonckpt.load_into(other, tmp_path, strip_prefix=part)
    assert difference(plain(other.state_dict()), plain(first.state_dict())) is None


def test_an_average_and_its_counter(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(net())
    jsonckpt.save(average.state_dict(), tmp_path)
    model = net()
    said = hint(model, tmp_path)
    assert said == (
        "All 9 tensors fit without the prefix 'module.': pass strip_prefix='module.'; what still "
        "differs may be left out with exclude=: '/n_averaged'."
    )
    jsonckpt.load_into(model, tmp_path, strip_prefix="module.", exclude="/n_averaged")
    assert difference(model.state_dict(), average.module.state_dict()) is None
    jsonckpt.save(model.state_dict(), tmp_path)
    assert hint(average, tmp_path).startswith("9 of 10 tensors fit without the prefix 'module.'")


BASES: dict[str, tuple[dict[str, str], str]] = {
    "bert": ({"embeddings.w": "bert.embeddings.w", "pooler.w": "bert.pooler.w"}, "bert."),
    "transformer": ({"wte.weight": "transformer.wte.weight"}, "transformer."),
    "timm": ({"blocks.0.w": "backbone.model.blocks.0.w"}, "backbone.model."),
    "lightning": ({"model.layers.0.w": "model.model.layers.0.w", "head.w": "model.head.w"},
                  "model."),
}  # fmt: skip


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("back", [True, False])
def test_prefixes_of_other_libraries(tmp_path: Path, kind: str, back: bool) -> None:
    names, prefix = BASES[kind]
    state = {
        theirs: torch.full((2, n + 1), float(n + 1)) for n, theirs in enumerate(names.values())
    }
    target = {own: torch.zeros(2, n + 1) for n, own in enumerate(names)}
    if back:
        state, target = (
            dict(zip(target, state.values(), strict=True)),
            dict(zip(state, target.values(), strict=True)),
        )
    jsonckpt.save(state, tmp_path)
    assert f"strip_prefix={prefix!r}" in hint(target, tmp_path)
    jsonckpt.load_into(target, tmp_path, strip_prefix=prefix)
    assert all(tensor.all() for tensor in target.values())


def test_two_state_dicts_with_two_prefixes_take_one_argument(tmp_path: Path) -> None:
    jsonckpt.save(
        {"m": torch.nn.DataParallel(net()).state_dict(), "e": compiled(net()).state_dict()},
        tmp_path,
    )
    both = "strip_prefix=['module.', '_orig_mod.']"
    assert both in hint({"m": net(), "e": net()}, tmp_path)
    # One alone leads to both.
    assert both in hint({"m": net(), "e": net()}, tmp_path, strip_prefix="module.")
    jsonckpt.load_into({"m": net(), "e": net()}, tmp_path, strip_prefix=["module.", "_orig_mod"])


def test_optimizers_are_paired_by_their_stripped_names(tmp_path: Path) -> None:
    def stepped(model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(model.named_parameters())
        for n, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, n + 1.0)
        optimizer.step()
        return optimizer

    if torch.__version__ < "2.6":
        pytest.skip("torch has no names of parameters yet")
    first = stepped(torch.nn.ModuleDict({"model": net()}))
    jsonckpt.save({"o": first.state_dict()}, tmp_path)
    other = torch.optim.AdamW(reversed(list(net().named_parameters())))
    said = hint({"o": other}, tmp_path)
    assert "names of target['o']['state'] differ by the prefix 'model.'" in said
    jsonckpt.load_into({"o": other}, tmp_path, strip_prefix="model.")
    found = [other.state[p]["exp_avg"] for p in reversed(other.param_groups[0]["params"])]
    wanted = [first.state[p]["exp_avg"] for p in first.param_groups[0]["params"]]
    assert difference(found, wanted) is None


def test_a_module_that_loads_itself(tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 3))
        return torch.nn.Sequential(layer)

    first, other = torch.nn.DataParallel(make()), make()
    jsonckpt.save(first.state_dict(), tmp_path)
    with pytest.raises(StateMismatchError, match=r"pass strip_prefix='module\.'"):
        jsonckpt.load_into(other, tmp_path)
    jsonckpt.load_into(other, tmp_path, strip_prefix="module.")
    assert difference(other.state_dict(), first.module.state_dict()) is None


def test_versions_of_modules_follow_their_names(tmp_path: Path) -> None:
    """Without its version, a batch norm may lack its counter; with version 2 it may not."""
    state = torch.nn.DataParallel(net()).state_dict()
    del state["module.1.num_batches_tracked"]
    jsonckpt.save(state, tmp_path)
    with pytest.raises(StateMismatchError, match=r"missing: '/1\.num_batches_tracked'"):
        jsonckpt.load_into(net(), tmp_path, strip_prefix="module.")


# --- the argument -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name", "stripped"),
    [
        ("module", "module.w", "w"),
        ("module.", "modules.w", "modules.w"),
        ("module.", "module", "module"),
        ("module.", "a.module.b.w", "a.b.w"),
        ("model.", "a.model.w", "a.model.w"),
        ("model.", "model.model.w", "w"),
        ("model.encoder", "model.encoder.w", "w"),
        ("model.encoder", "model.w", "model.w"),
        ("module._orig_mod.", "_orig_mod.module.w", "w"),
        (["net", "model"], "model.net.w", "w"),
        (("model", "_orig_mod"), "_orig_mod.model._orig_mod.x.w", "x.w"),
        ([], "module.w", "module.w"),
        (None, "module.w", "module.w"),
    ],
)
def test_what_is_stripped(given: Any, name: str, stripped: str) -> None:
    assert Prefixes.of(given).strip(name) == stripped


@pytest.mark.parametrize("given", ["", ".", "a..b", ".a", 3, b"module.", ["a", 1], {"a": 1}, [""]])
def test_what_is_no_prefix(tmp_path: Path, given: Any) -> None:
    jsonckpt.save({"w": torch.ones(1)}, tmp_path)
    with pytest.raises(ArgumentError, match="strip_prefix"):
        jsonckpt.load_into({"w": torch.zeros(1)}, tmp_path, strip_prefix=given)


@pytest.mark.parametrize("strict", [True, False])
def test_a_prefix_that_no_name_has(tmp_path: Path, strict: bool) -> None:
    jsonckpt.save({"module.a.w": torch.ones(1)}, tmp_path)
    target = {"a.w": torch.zeros(1)}
    with pytest.raises(StateMismatchError, match=r"'modul\.': no name .* begin with 'a\.', ") as e:
        jsonckpt.load_into(target, tmp_path, strip_prefix=["module.", "modul."], strict=strict)
    assert "module." in str(e.value)
    assert not target["a.w"].any()


@pytest.mark.parametrize("side", ["checkpoint", "target"])
def test_two_tensors_with_one_name_are_refused(tmp_path: Path, side: str) -> None:
    both, one = ({"module.w": torch.ones(1), "w": torch.zeros(1)}, {"w": torch.full((1,), 7.0)})
    state, target = (both, one) if side == "checkpoint" else (one, both)
    jsonckpt.save({"m": state}, tmp_path)
    with pytest.raises(StateMismatchError, match=f"two tensors of the {side}") as caught:
        jsonckpt.load_into({"m": target}, tmp_path, strip_prefix="module.")
    assert "'/m/module.w'" in str(caught.value)
    assert "'/m/w'" in str(caught.value)
    assert [tensor.item() for tensor in target.values()] == ([7.0] if target is one else [1.0, 0.0])
    if side == "checkpoint":
        jsonckpt.load_into({"m": target}, tmp_path, strip_prefix="module.", exclude="/m/w")
        assert target["w"].item() == 1.0


def test_what_does_not_fit_without_its_prefix_is_said(tmp_path: Path) -> None:
    jsonckpt.save({"module.w": torch.ones(2), "module.x": torch.ones(1)}, tmp_path)
    target = {"w": torch.zeros(3), "y": torch.zeros(1)}
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into(target, tmp_path, strip_prefix="module.")
    error = caught.value
    assert error.missing == ["/y"]
    assert error.unexpected == ["/module.x"]
    assert error.mismatched == ["/module.w: shape [2] in the checkpoint, [3] in the target"]


# --- what the hint says -----------------------------------------------------------------------


@pytest.mark.parametrize("keys", [("model",), ("state_dict",), ("a", "model_state_dict")])
def test_names_below_a_wrapper(tmp_path: Path, keys: tuple[str, ...]) -> None:
    model, other = net(), net()
    state: Any = model.state_dict()
    for key in reversed(keys):
        state = {key: state, "epoch": 3}
    jsonckpt.save(state, tmp_path)
    said = hint(other, tmp_path)
    assert f"has these names below '/{'/'.join(keys)}': pass {{'{keys[0]}': " in said
    given = said[said.index("pass ") + 5 : said.index(" as the target")]
    jsonckpt.load_into(eval(given, {"model": other}), tmp_path)
    assert difference(other.state_dict(), model.state_dict()) is None


def test_names_below_a_wrapper_beside_an_optimizer(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    jsonckpt.save({"state_dict": state, "optimizer": optimizer.state_dict()}, tmp_path)
    other = net()
    assert hint(other, tmp_path) == (
        "The checkpoint has these names below '/state_dict': pass {'state_dict': model} as the "
        "target, and strip_prefix='model.', and include='/state_dict'."
    )
    jsonckpt.load_into(
        {"state_dict": other}, tmp_path, strip_prefix="model.", include="/state_dict"
    )
    assert difference(other.state_dict(), model.state_dict()) is None
    again = torch.optim.SGD(other.parameters(), momentum=0.9)
    assert "below '/optimizer': pass {'optimizer': optimizer}" in hint(again, tmp_path)


def test_a_target_below_a_key_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    jsonckpt.save(dict(net().state_dict()), tmp_path / "flat")
    said = hint({"model": net()}, tmp_path / "flat")
    assert said.endswith("at its top: pass target['model'] as the target.")
    jsonckpt.save({"model": net().state_dict(), "ema": net().state_dict()}, tmp_path / "two")
    said = hint({"net": torch.nn.Linear(1, 1), "ema": net()}, tmp_path / "two")
    assert "pass" not in said.partition("Pass strict")[0]
    said = hint({"modle": net(), "ema": net()}, tmp_path / "two")
    assert "below '/model': pass {'model': target['modle'], ...} as the target" in said


def test_the_nearest_names_have_the_shape(tmp_path: Path) -> None:
    saved = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2), "fc.other": torch.ones(9)}
    jsonckpt.save({**saved, "body.w": torch.ones(4), "neck.w": torch.ones(5)}, tmp_path)
    target = {"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}
    target |= {"body.w": torch.ones(4), "neck.w": torch.ones(5)}
    said = hint(target, tmp_path)
    assert said == (
        "The nearest names in the checkpoint: '/fc.weight' for '/head.weight', '/fc.bias' for "
        "'/head.bias'."
    )


def test_two_explanations_are_both_said(tmp_path: Path) -> None:
    state = {f"{who}.{n}.w": torch.ones(n + 1) for who in ("student", "teacher") for n in range(4)}
    jsonckpt.save(state, tmp_path / "c")
    target = {f"{n}.w": torch.zeros(n + 1) for n in range(4)}
    said = hint(target, tmp_path / "c")
    assert "pass strip_prefix='student.'" in said
    assert said.endswith("As many fit with strip_prefix='teacher.': the names do not tell which.")
    model, ema = net().state_dict(), net().state_dict()
    jsonckpt.save({"model": model, "ema": ema}, tmp_path / "two")
    said = hint(net(), tmp_path / "two")
    assert "pass {'model': model} as the target, and include='/model'." in said
    assert said.endswith("It has them below '/ema', too: the names do not tell which.")


def test_nothing_is_guessed(tmp_path: Path) -> None:
    """The names would fit without a prefix, but not the shapes; or only a few of them."""
    jsonckpt.save({f"module.{n}.w": torch.ones(n + 2) for n in range(6)}, tmp_path)
    assert "strip_prefix" not in hint({f"{n}.w": torch.ones(n + 3) for n in range(6)}, tmp_path)
    few = {f"{n}.w": torch.ones(n + 2) for n in (0, 1)} | {f"x{n}": torch.ones(1) for n in range(9)}
    assert "strip_prefix" not in hint(few, tmp_path)


def test_without_strict_the_result_has_the_hint(tmp_path: Path) -> None:
    jsonckpt.save(torch.nn.DataParallel(net()).state_dict(), tmp_path)
    result = jsonckpt.load_into(net(), tmp_path, strict=False)
    assert result.loaded == ()
    assert result.hint == "All names differ by the prefix 'module.': pass strip_prefix='module.'."
    result = jsonckpt.load_into(net(), tmp_path, strict=False, strip_prefix="module.")
    assert (result.hint, len(result.loaded)) == ("", 9)


def test_other_differences_keep_their_way_out(tmp_path: Path) -> None:
    state = torch.nn.DataParallel(net()).state_dict()
    jsonckpt.save({"m": state, "n": torch.ones(1, dtype=torch.float64)}, tmp_path)
    said = hint({"m": net(), "n": torch.ones(1)}, tmp_path)
    assert "pass strip_prefix='module.'" in said
    assert said.endswith("Pass cast=True to convert dtypes.")


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_module_has_no_shapes_to_compare(tmp_path: Path) -> None:
    jsonckpt.save({"module.0.weight": torch.ones(3, 2), "module.0.bias": torch.ones(3)}, tmp_path)
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(3))
    with pytest.raises(StateMismatchError, match=r"pass strip_prefix='module\.'"):
        jsonckpt.load_into(lazy, tmp_path)
    jsonckpt.load_into(lazy, tmp_path, strip_prefix="module.")
    assert lazy.get_parameter("0.weight").shape == (3, 2)


def test_hints_hold_for_many_and_for_odd_names(tmp_path: Path) -> None:
    odd = ["", ".", "a..b", "module", "module.", ".module.x", "a/b", "~", "ü.module.x", "x" * 900]
    jsonckpt.save({name: torch.ones(1) for name in odd}, tmp_path)
    for prefix in ("module.", "a", "x"):
        target = {f"{prefix}{name}": torch.zeros(1) for name in odd}
        with pytest.raises(StateMismatchError) as caught:
            jsonckpt.load_into(target, tmp_path)
        assert len(str(caught.value)) < 3_000
        if "strip_prefix=" in str(caught.value.hint):
            assert str(caught.value.hint)[-1] == "."
    deep: Any = {"w": torch.ones(1)}
    for n in range(60):
        deep = {"deep": deep, f"w{n}": torch.ones(1)}
    jsonckpt.save(deep, tmp_path)
    assert "pass" not in hint({"v": torch.zeros(2)}, tmp_path)
