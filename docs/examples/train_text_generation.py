"""Train a small GPT-2 on real text, be killed at any moment, and go on exactly where it stopped.

The text is the Python language reference that every Python carries (``pydoc_data.topics``), the
tokenizer is trained on it on the spot, and nothing is downloaded::

    pip install "jsonckpt[example]"
    python docs/examples/train_text_generation.py                     # runs/text-generation/
    python docs/examples/train_text_generation.py --resume latest     # after a stop of any kind
    python docs/examples/train_text_generation.py --prove             # shows that it is exact

``--output`` then holds ``checkpoint_epoch*.json``, ``best_model.json``, ``training_history.json``,
``tokenizer.json``, ``steps.jsonl`` (every loss, bit for bit) and ``final_model/`` (Hugging Face).

All that this program does for its checkpoints stands in ``Run.state``, ``Run.restore``,
``Run.save`` and ``load_checkpoint``. Beside it lie the text and its tokenizer in ``pydoc_text.py``,
the model in ``small_gpt2.py`` and the proof in ``prove_resume.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any

# Read by the libraries when they are imported: stay offline, be quiet, be deterministic.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import pydoc_text
import small_gpt2
import torch
from tqdm import tqdm

import jsonckpt
from jsonckpt import training

STEP_LOG = "steps.jsonl"


def option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": f"{text} (default: {default})"})


@dataclass(frozen=True)
class Config:
    """What decides the result. It is saved in every checkpoint and taken from there on resume."""

    epochs: int = option(2, "passes over the training text")
    batch_size: int = option(4, "samples in a forward pass")
    gradient_accumulation: int = option(2, "forward passes in an optimizer step")
    max_length: int = option(128, "tokens in a sample")
    vocabulary: int = option(4096, "size of the tokenizer's vocabulary")
    layers: int = option(4, "transformer blocks")
    width: int = option(128, "size of the embedding")
    heads: int = option(4, "attention heads")
    dropout: float = option(0.1, "probability")
    learning_rate: float = option(3e-3, "its peak")
    warmup: float = option(0.1, "fraction of all steps")
    weight_decay: float = option(0.01, "of AdamW")
    max_grad_norm: float = option(1.0, "gradients are clipped to it")
    save_every: int = option(40, "optimizer steps between checkpoints, 0 for ends of epochs only")
    keep: int = option(3, "how many of the checkpoints within epochs to keep, 0 for all")
    max_samples: int = option(0, "use no more samples than this, 0 for all")
    precision: str = option("auto", "auto, float32, bfloat16 or float16")
    seed: int = option(0, "of weights, dropout and the order of the data")
    threads: int = option(2, "of torch on the CPU; sums depend on it in their last bits")

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation


# The run --------------------------------------------------------------------------------------


class Run:
    """Everything that lives as long as the training: model, optimizer, data, counters."""

    def __init__(
        self, config: Config, output: Path, device: torch.device, *, beside: Path | None = None
    ) -> None:
        small_gpt2.transformers_library()  # before the seeds: an import may draw random numbers
        self.config, self.output, self.device = config, output, device
        random.seed(config.seed)
        np.random.seed(config.seed % 2**32)
        torch.manual_seed(config.seed)

        text = pydoc_text.training_text()
        self.tokenizer = pydoc_text.get_tokenizer(text, config.vocabulary, output, beside)
        self.samples, self.validation = pydoc_text.get_samples(
            self.tokenizer, text, config.max_length, config.max_samples
        )
        self.data_sha256 = hashlib.sha256(self.samples.numpy().tobytes()).hexdigest()
        self.order = training.SeededOrder(len(self.samples), config.seed, epoch=1)

        self.model = small_gpt2.new_model(
            self.tokenizer,
            length=config.max_length,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            dropout=config.dropout,
        )
        self.model.to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.dtype = small_gpt2.autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.step = 0
        self.loss_sum = 0.0
        self.val_loss: float | None = None
        self.best_val_loss: float | None = None
        self.history: list[dict[str, Any]] = []
        self.save_seconds = 0.0
        self.start_schedule(at_step=0)

    # What of this run is in a checkpoint ---------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "scaler_state_dict": self.scaler.state_dict(),
            "epoch": self.order.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "train_loss": self.train_loss,
            "val_loss": self.val_loss,
            "val_perplexity": perplexity(self.val_loss),
            "best_val_loss": self.best_val_loss,
            "history": self.history,
            "config": asdict(self.config),
            "rng": training.rng_state(cuda=self.device.type == "cuda"),
            "sampler": self.order.state_dict(),
            "loss_sum": self.loss_sum,
            "schedule_start": self.schedule_start,
            "data_sha256": self.data_sha256,
        }

    def restore(self, state: dict[str, Any], *, with_optimizer: bool) -> None:
        """Go on from ``state``; without the optimizer, its moments and the schedule begin anew."""
        if state["data_sha256"] != self.data_sha256:
            raise SystemExit(
                "The text is not the one of the checkpoint: pydoc_data differs between versions of "
                "Python. Resume with the version that the run began with."
            )
        self.model.load_state_dict(state["model_state_dict"])
        self.order.load_state_dict(state["sampler"])
        self.step, self.loss_sum = state["step"], state["loss_sum"]
        self.val_loss, self.best_val_loss = state["val_loss"], state["best_val_loss"]
        self.history = list(state["history"])
        if not with_optimizer:
            self.start_schedule(at_step=self.step)
            return
        self.start_schedule(at_step=state["schedule_start"])
        training.restore_optimizer(self.optimizer, state["optimizer_state_dict"])
        self.scheduler.load_state_dict(state["scheduler_state_dict"])
        if self.scaler.is_enabled() and state["scaler_state_dict"]:
            self.scaler.load_state_dict(state["scaler_state_dict"])
        # Both come with the saved state, and may have been given anew.
        self.scheduler.base_lrs = [self.config.learning_rate for _ in self.scheduler.base_lrs]
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
        rng = state["rng"]
        gpus = torch.cuda.device_count() if self.device.type == "cuda" else 0
        if len(rng["cuda"] or ()) != gpus:
            say("The checkpoint was saved with other devices: dropout will differ from here on.")
            rng = {**rng, "cuda": None}
        training.set_rng_state(rng)

    def save(self, *, best: bool = False) -> Path:
        """Write a checkpoint; when this returns, it is whole and on the disk."""
        started = time.monotonic()
        state = self.state()
        name = f"checkpoint_epoch{self.order.epoch}"
        if not self.at_end_of_epoch:
            name += f"_step{self.step:04d}"
        # The checkpoint last: a run that is killed in between does all of this again.
        if best:
            jsonckpt.save(state, self.output / "best_model.json")
        self.write_history()
        path = self.output / f"{name}.json"
        jsonckpt.save(state, path)
        if self.config.keep:
            within_epochs = training.checkpoints(self.output, "checkpoint_epoch*_step*.json")
            for old in within_epochs[: -self.config.keep]:
                old.unlink()
        self.save_seconds = time.monotonic() - started
        return path

    # Counters ------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        return math.ceil(self.order.n / self.config.samples_per_step) * self.config.epochs

    @property
    def step_in_epoch(self) -> int:
        return math.ceil(self.order.position / self.config.samples_per_step)

    @property
    def at_end_of_epoch(self) -> bool:
        return self.order.position == self.order.n

    @property
    def train_loss(self) -> float | None:
        """The mean of this epoch so far."""
        return self.loss_sum / self.step_in_epoch if self.step_in_epoch else None

    # Training ------------------------------------------------------------------------------

    def start_schedule(self, *, at_step: int) -> None:
        """Warm up from ``at_step`` on and be done at the run's last step."""
        self.schedule_start = at_step
        total = self.total_steps - at_step
        for group in self.optimizer.param_groups:
            group.pop("initial_lr", None)
            group["lr"] = self.config.learning_rate
        factor = small_gpt2.warmup_cosine(max(1, round(self.config.warmup * total)), total)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def optimizer_step(self, indices: np.ndarray[Any, Any]) -> float:
        """One step over ``indices``, in forward passes of ``batch_size``. Returns the loss."""
        total = torch.zeros((), device=self.device)
        for start in range(0, len(indices), self.config.batch_size):
            part = indices[start : start + self.config.batch_size]
            loss = self.loss_of(self.samples[part]) * (len(part) / len(indices))
            torch.autograd.backward(self.scaler.scale(loss))
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the step overflowed and was not taken
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.order.advance(len(indices))
        self.step += 1
        loss_value = float(total)
        self.loss_sum += loss_value
        return loss_value

    def loss_of(self, tokens: torch.Tensor) -> torch.Tensor:
        return small_gpt2.next_token_loss(self.model, tokens.to(self.device), self.dtype)

    @torch.no_grad()
    def evaluate(self) -> bool:
        """Measure the validation loss and note it. Returns whether it is the best so far."""
        self.model.eval()
        total = 0.0
        with training.fork_rng(cuda=self.device.type == "cuda"):
            for part in torch.split(self.validation, self.config.samples_per_step):
                total += float(self.loss_of(part)) * len(part)
        self.model.train()
        self.val_loss = total / len(self.validation)
        self.history.append(
            {
                "epoch": self.order.epoch,
                "step": self.step,
                "train_loss": self.train_loss,
                "val_loss": self.val_loss,
                "val_perplexity": perplexity(self.val_loss),
                "learning_rate": self.scheduler.get_last_lr()[0],
            }
        )
        best = self.best_val_loss is None or self.val_loss < self.best_val_loss
        if best:
            self.best_val_loss = self.val_loss
        return best

    def train(self, deadline: training.Deadline) -> bool:
        """Train to the end, or to the deadline. Returns whether it is the end."""
        # disable=None: a bar on a terminal only. A log file gets the lines of the saves.
        bar = tqdm(
            total=self.total_steps, initial=self.step, desc="training", unit="step", disable=None
        )
        with bar, open_log(self.output / STEP_LOG) as log:
            while True:
                remaining, size = self.order.remaining(), self.config.samples_per_step
                for start in range(0, len(remaining), size):
                    loss = self.optimizer_step(remaining[start : start + size])
                    log(step=self.step, loss=loss, loss_hex=loss.hex(), at=time.monotonic())
                    bar.set_postfix_str(f"epoch {self.order.epoch}, loss {loss:.3f}", refresh=False)
                    bar.update()
                    every = self.config.save_every
                    due = self.at_end_of_epoch or (every > 0 and self.step % every == 0)
                    best = due and self.evaluate()
                    stop = deadline.reached(reserve=2 * self.save_seconds)
                    if due or stop:
                        path = self.save(best=best)
                        bar.write(f"{path.name}: {progress_line(self)}", file=sys.stderr)
                    if stop and self.step < self.total_steps:
                        return False
                if self.order.epoch >= self.config.epochs:
                    return True
                self.order.next_epoch()
                self.loss_sum = 0.0

    def write_history(self) -> None:
        summary = {
            "config": asdict(self.config),
            "best_val_loss": self.best_val_loss,
            "history": self.history,
        }
        pydoc_text.replace_file(
            self.output / "training_history.json", json.dumps(summary, indent=1) + "\n"
        )

    def write_final_model(self) -> Path:
        """``final_model/``: what ``from_pretrained`` takes."""
        folder = self.output / "final_model"
        small_gpt2.export(self.model, self.tokenizer, folder)
        return folder


def perplexity(loss: float | None) -> float | None:
    return None if loss is None else math.exp(min(loss, 700.0))


def progress_line(run: Run) -> str:
    loss = f"training loss {run.train_loss:.4f}" if run.train_loss is not None else ""
    if run.val_loss is None:
        return loss
    return f"{loss}, validation loss {run.val_loss:.4f}, perplexity {perplexity(run.val_loss):.1f}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def open_log(path: Path) -> Iterator[Callable[..., None]]:
    """A function that appends a JSON line, which is in the file when it returns."""
    file: IO[bytes]
    with path.open("ab+") as file:
        file.seek(0)
        # A line that a killed process left unfinished.
        file.truncate(file.read().rfind(b"\n") + 1)

        def log(**values: Any) -> None:
            file.write(json.dumps(values).encode() + b"\n")
            file.flush()

        yield log


# The program ----------------------------------------------------------------------------------


def find_checkpoint(resume: str, output: Path) -> Path:
    path = output if resume == "latest" else Path(resume)
    if path.is_dir() and not (path / "manifest.json").exists():
        newest = training.latest(path)
        if newest is None:
            raise SystemExit(f"There is no checkpoint in {path}: begin without --resume.")
        return newest
    return path


def load_checkpoint(path: Path, *, with_optimizer: bool) -> dict[str, Any]:
    exclude = None if with_optimizer else "/optimizer_state_dict"
    state: dict[str, Any] = jsonckpt.load(path, map_location="cpu", exclude=exclude)
    return state


def resumed_config(saved: Config, overrides: dict[str, Any]) -> Config:
    """The saved configuration with what was given anew, as far as that can be changed."""
    config = replace(saved, **overrides)
    for key in (key for key in overrides if overrides[key] != getattr(saved, key)):
        if key in ("seed", "vocabulary", "max_length", "max_samples", "layers", "width", "heads"):
            raise SystemExit(f"--{key} cannot change on resume: it is {getattr(saved, key)}.")
        say(f"changed on resume: {key} from {getattr(saved, key)} to {overrides[key]}")
    if config.samples_per_step != saved.samples_per_step:
        raise SystemExit(
            "The samples of a step cannot change on resume: --batch-size times "
            f"--gradient-accumulation must stay {saved.samples_per_step}."
        )
    return config


def train(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    checkpoint: Path | None = None
    state: dict[str, Any] = {}
    if options.resume:
        checkpoint = find_checkpoint(options.resume, output)
        state = load_checkpoint(checkpoint, with_optimizer=not options.no_optimizer)
        config = resumed_config(Config(**state["config"]), overrides)
    else:
        config = Config(**overrides)
        old = training.checkpoints(output, "checkpoint_epoch*.json")
        if old and not options.overwrite:
            raise SystemExit(
                f"{output} holds the checkpoints of a run ({old[-1].name}): go on with it by "
                "--resume latest, or take another --output, or begin anew with --overwrite."
            )
        for path in [*old, output / STEP_LOG, output / pydoc_text.TOKENIZER]:
            path.unlink(missing_ok=True)
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)

    with training.Deadline(options.deadline and options.deadline * 3600) as deadline:
        run = Run(config, output, device, beside=checkpoint and checkpoint.parent)
        if checkpoint:
            run.restore(state, with_optimizer=not options.no_optimizer)
            del state
            what = "weights only" if options.no_optimizer else "everything"
            say(f"resumed from {checkpoint} at step {run.step} of {run.total_steps} ({what})")
        finished = run.train(deadline)
    if not finished:
        say(
            f"stopped at step {run.step} of {run.total_steps} because {deadline.reason}: go on with"
        )
        say(f"  --output {output} --resume latest")
        return 0
    say(f"{run.write_final_model()}: {progress_line(run)}")
    return 0


def arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of this call, and the members of :class:`Config` that were given."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/text-generation", help="default: %(default)s")
    parser.add_argument("--resume", metavar="PATH", help="a checkpoint, a directory, or 'latest'")
    parser.add_argument("--no-optimizer", action="store_true", help="resume the weights only")
    parser.add_argument("--overwrite", action="store_true", help="begin anew in a used --output")
    parser.add_argument("--deadline", type=float, metavar="HOURS", help="save and stop in time")
    parser.add_argument("--device", help="cuda, cpu, … (default: cuda where there is one)")
    parser.add_argument("--prove", action="store_true", help="kill, resume and compare every bit")
    parser.add_argument("--kill-at", type=int, metavar="STEP", help="for --prove (default: random)")
    group = parser.add_argument_group(
        "what decides the result; taken from the checkpoint on resume"
    )
    for one in fields(Config):
        flag = f"--{one.name.replace('_', '-')}"
        group.add_argument(
            flag,
            type=type(one.default),
            default=argparse.SUPPRESS,
            metavar=type(one.default).__name__.upper(),
            help=one.metadata["help"],
            choices=["auto", "float32", "bfloat16", "float16"] if one.name == "precision" else None,
        )
    options = parser.parse_args(argv)
    names = {one.name for one in fields(Config)}
    overrides = {key: value for key, value in vars(options).items() if key in names}
    if options.prove and (options.resume or options.deadline):
        parser.error("--prove runs its own runs: leave out --resume and --deadline")
    return options, overrides


def main(argv: Sequence[str] | None = None) -> int:
    options, overrides = arguments(argv)
    if not options.prove:
        return train(options, overrides)
    from prove_resume import prove

    forwarded = [f"--{key.replace('_', '-')}={value}" for key, value in overrides.items()]
    forwarded += [f"--device={options.device}"] if options.device else []
    config = Config(**overrides)
    return prove(
        Path(__file__), Path(options.output), forwarded, config.save_every, options.kill_at
    )


if __name__ == "__main__":
    sys.exit(main())
