"""Small training runs with the Hugging Face Trainer, in a process of its own or in that of a test."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

import jsonckpt
from jsonckpt.integrations.transformers import JsonTrainer


class Data(torch.utils.data.Dataset[Any]):
    """Sequences of eight tokens."""

    def __init__(self, count: int = 24) -> None:
        self.x = torch.randint(0, 32, (count, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.x[index], "labels": self.x[index]}


class Stop(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Stops, or kills the process, when a step has been done and saved."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        del args
        if self.kill and state.global_step == self.step:
            os.kill(os.getpid(), 9)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        del args
        control.should_training_stop |= state.global_step == self.step and not self.kill
        return control


def llama() -> Any:
    """A language model of 5,000 parameters, with a tied embedding and dropout."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            attention_dropout=0.1,
            max_position_embeddings=16,
            tie_word_embeddings=True,
        )
    )


def trainer(
    directory: Path | str,
    *,
    stop: int | None = None,
    kill: bool = False,
    build: Any = llama,
    kind: Any = JsonTrainer,
    **options: Any,
) -> Any:
    """A Trainer of twelve steps in two epochs, which saves every second step."""
    set_seed(0)
    arguments = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        **options,
    }
    return kind(
        model=build(),
        args=TrainingArguments(output_dir=str(directory), **arguments),
        train_dataset=Data(),
        eval_dataset=Data(8),
        callbacks=[Stop(stop, kill)] if stop is not None else [],
    )


def losses(run: Any) -> list[float]:
    """The losses that a run logged."""
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def digest(run: Any) -> str:
    """Of the weights, and of what is drawn next."""
    tensors = [*run.model.state_dict().values(), torch.rand(3)]
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def main() -> None:
    """``ranks``: runs on two ranks. Else a run in a directory, killed at a step or resumed."""
    torch.set_num_threads(1)
    if sys.argv[1] != "ranks":
        directory, step = sys.argv[1], int(sys.argv[2])
        run = trainer(directory, stop=step or None, kill=True, dataloader_num_workers=2)
        run.train(resume_from_checkpoint=not step)
        print(digest(run), losses(run))
        return
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group(
        "gloo", init_method=os.environ["STORE"], rank=rank, world_size=ranks
    )
    whole = trainer("whole", ddp_backend="gloo")
    whole.train()
    expected = losses(whole), digest(whole)
    trainer("stopped", stop=3, ddp_backend="gloo").train()
    again = trainer("stopped", ddp_backend="gloo")
    again.train(resume_from_checkpoint=True)
    assert (losses(again), digest(again)) == expected
    if rank == 0:
        Path("full/checkpoint-2").mkdir(parents=True)
        Path("full/checkpoint-2/jsonckpt").write_text("no directory")
    torch.distributed.barrier()
    try:
        trainer("full", ddp_backend="gloo").train()
    except (jsonckpt.JsonckptError, OSError) as error:
        print(f"ERROR {error}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    print("DONE")


if __name__ == "__main__":
    main()
