"""What ten commits of a training run cost in a git repository, form by form.

``python -m benchmarks.repository`` trains a head on a frozen body with AdamW, commits the whole
state (body, head, optimizer, step) after every epoch, and prints what each form of checkpoint
costs. ``--train all`` trains every weight.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import jsonckpt

COMMITS = 10
State = dict[str, Any]


class Model(torch.nn.Module):
    """A body of encoder layers and a head of ten classes."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8_000, width)
        # Not nn.TransformerEncoder: its layers begin as copies of one another.
        self.body = torch.nn.Sequential(
            *(
                torch.nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True)
                for _ in range(layers)
            )
        )
        self.head = torch.nn.Linear(width, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(self.embedding(tokens)).mean(1))
        return out


def run(train: str, width: int, layers: int) -> list[bytes]:
    """The state after each epoch, as files of ``torch.save``."""
    torch.manual_seed(0)
    model = Model(width, layers)
    if train == "head":
        for part in (model.embedding, model.body):
            part.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    states = []
    for step in range(1, COMMITS + 1):
        for _ in range(5):
            tokens = torch.randint(8_000, (8, 16))
            loss = torch.nn.functional.cross_entropy(model(tokens), tokens[:, 0] % 10)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": 5 * step,
            "loss": loss.item(),
        }
        file = io.BytesIO()
        torch.save(state, file)
        states.append(file.getvalue())
    return states


# --- the forms ------------------------------------------------------------------------------------


def _own(name: str, **options: Any) -> Callable[[State, Path], object]:
    return lambda state, folder: jsonckpt.save(state, folder / name, sync=False, **options)


def _safetensors(state: State, folder: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    for number, moments in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{number}.{name}": moment for name, moment in moments.items()}
    about = {key: str(state[key]) for key in ("step", "loss")}
    save_file(tensors, folder / "run.safetensors", metadata=about)


def _torch(state: State, folder: Path) -> None:
    torch.save(state, folder / "run.pt")


FORMS: dict[str, Callable[[State, Path], object]] = {
    "by content, base64": _own("run", save_id="content"),
    "by content, base64, zstd": _own("run", save_id="content", compression="zstd"),
    "by content, list": _own("run", save_id="content", encoding="list"),
    "by content, one .json": _own("run.json", save_id="content"),
    "plain, base64": _own("run"),
    "plain, list": _own("run", encoding="list"),
    ".pt": _torch,
    ".safetensors": _safetensors,
}


# --- the repository -------------------------------------------------------------------------------


@dataclass
class Cost:
    """What a form costs, in bytes.

    Attributes:
        files: of one checkpoint.
        checkpoint: size of the last one.
        first: what the first commit adds to the repository.
        later: what each later commit adds.
        packed: the whole repository after ``git gc``.
        seconds: of the later saves, on average.
    """

    files: int = 0
    checkpoint: int = 0
    first: int = 0
    later: list[int] = field(default_factory=list)
    packed: int = 0
    seconds: float = 0.0


def _git(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "benchmark"),
        **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "b@example.org"),
    }
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True, capture_output=True, text=True, env=environment,
    ).stdout  # fmt: skip


def _repository_size(folder: Path) -> int:
    """Bytes of all objects, loose and packed. ``git count-objects`` rounds to blocks."""
    objects = folder / ".git" / "objects"
    return sum(file.stat().st_size for file in objects.rglob("*") if file.is_file())


def measure(save: Callable[[State, Path], object], states: list[bytes], folder: Path) -> Cost:
    """Commit every state in a new repository."""
    cost = Cost()
    _git(folder, "init", "-q")
    (folder / ".gitattributes").write_text("*.json -text\n*.pt -text\n*.safetensors -text\n")
    before = 0
    for number, text in enumerate(states):
        state = torch.load(io.BytesIO(text))
        began = time.perf_counter()
        save(state, folder)
        if number:
            cost.seconds += (time.perf_counter() - began) / (len(states) - 1)
        _git(folder, "add", "-A")
        _git(folder, "commit", "-qm", f"epoch {number + 1}")
        size = _repository_size(folder)
        if number:
            cost.later.append(size - before)
        else:
            cost.first = size
        before = size
    files = [file for file in folder.rglob("*") if file.is_file() and ".git" not in str(file)]
    cost.files = len(files)
    cost.checkpoint = sum(file.stat().st_size for file in files)
    _git(folder, "gc", "-q")
    cost.packed = _repository_size(folder)
    return cost


def _mb(count: float) -> str:
    return f"{count / 1e6:,.2f}" if count < 1e6 else f"{count / 1e6:,.1f}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", choices=["head", "all"], default="head")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--forms", nargs="*", help="a part of the name of each form to try")
    options = parser.parse_args(arguments)
    states = run(options.train, options.width, options.layers)
    print(f"{COMMITS} commits, --train {options.train}; the .pt has {_mb(len(states[-1]))} MB\n")
    print("| form | files | checkpoint | first commit | each later commit | before gc | after gc |")
    print("|---|---|---|---|---|---|---|")
    for name, save in FORMS.items():
        if options.forms and not any(part in name for part in options.forms):
            continue
        with tempfile.TemporaryDirectory(prefix="repository-") as folder:
            cost = measure(save, states, Path(folder))
        later = sum(cost.later) / len(cost.later)
        sizes = [cost.checkpoint, cost.first, later, cost.first + sum(cost.later), cost.packed]
        print(f"| {name} | {cost.files} | {' | '.join(map(_mb, sizes))} |", flush=True)


if __name__ == "__main__":
    main()
