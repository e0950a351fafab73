"""A mixin for the Hugging Face Trainer: checkpoints of plain JSON instead of pickles."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import Trainer

from ..errors import ArgumentError, StateMismatchError
from ..save.api import save
from ..training.optimizer import restore_optimizer
from ..training.rng import rng_state, set_rng_state
from .hf_checkpoint import (
    check_checkpoint,
    fsync_files,
    get_last_checkpoint,
    has_json,
    load_part,
    load_weights,
    state_directory,
    trained_tensors,
)
from .ranks import gather_values, together
from .save_options import check_options

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

#: Ways of training whose state is spread over ranks, with the attribute that says so.
_SHARDED = {
    "is_deepspeed_enabled": "DeepSpeed",
    "is_fsdp_enabled": "FSDP",
    "is_fsdp_xla_enabled": "FSDP of XLA",
    "is_distributed_loading_by_transformers": "tensor parallelism of transformers",
}


class JsonCheckpointTrainerMixin(_Trainer):
    """Put it before a Trainer: ``class MyTrainer(JsonCheckpointTrainerMixin, Trainer)``.

    In each ``checkpoint-N`` the subdirectory ``jsonckpt`` has the whole training state as one JSON
    checkpoint, and nothing is pickled: weights, optimizer, schedule, gradient scaler, the random
    states of all ranks, the training arguments. ``jsonckpt.load("checkpoint-N/jsonckpt")`` reads
    it. The Trainer's own texts are beside it (``config.json``, the tokenizer,
    ``trainer_state.json``), and any other file is left alone.

    The JSON checkpoint is committed last, in one step. Old checkpoints are removed after that
    (``save_total_limit``). ``resume_from_checkpoint=True`` takes the newest whole checkpoint, and
    warns of one that is not whole. Checkpoints of the stock Trainer can be resumed from, too.
    ``save_model()`` still writes Hugging Face's own format, for ``from_pretrained``.

    Of a model with adapters (PEFT) the checkpoint has no frozen base weights.

    DDP is supported; FSDP, DeepSpeed and tensor parallelism are refused.

    Attributes:
        jsonckpt_options: keyword arguments of :func:`jsonckpt.save`, such as
            ``{"compression": "zstd"}``.
    """

    jsonckpt_options: ClassVar[Mapping[str, Any]] = {}
    #: What is collected for the checkpoint that is being saved; ``None`` between checkpoints.
    _json_parts: dict[str, Any] | None = None
    _json_directory: str | None = None

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **named: Any) -> Any:
        """``Trainer.train``; a checkpoint that is not whole is never resumed from.

        Raises:
            ArgumentError: ``resume_from_checkpoint=True`` and no checkpoint is whole, or a way of
                training whose state is spread over ranks, or ``jsonckpt_options`` are not valid.
            JsonckptError: the checkpoint to resume from is not whole.
        """
        self._refuse_sharded()
        check_options(self.jsonckpt_options, "jsonckpt_options")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ArgumentError(
                    f"no whole checkpoint is in {self.args.output_dir}",
                    hint="Call train() without resume_from_checkpoint to begin a new run.",
                )
        elif resume_from_checkpoint:
            check_checkpoint(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *arguments, **named)

    def _refuse_sharded(self) -> None:
        for attribute, name in _SHARDED.items():
            if getattr(self, attribute, False):
                raise ArgumentError(
                    f"JsonCheckpointTrainerMixin does not save {name}, whose state is spread over "
                    "ranks",
                    hint="Use the stock Trainer, or jsonckpt.integrations.dcp in a loop of your "
                    "own.",
                )

    # --- saving -----------------------------------------------------------------------------------

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        limit = self.args.save_total_limit
        self._json_parts = parts = {"training_args": _plain(self.args.to_dict())}
        # Old checkpoints are removed when this one is whole, and not before.
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(*arguments, **named)
        finally:
            self.args.save_total_limit = limit
            self._json_parts = None
        directory, self._json_directory = self._json_directory, None
        if directory is None:
            raise ArgumentError(
                "this Trainer overrides _save without a call of super(), so it has no JSON weights"
            )
        with together(self.accelerator):
            if self.args.should_save:
                self._commit(directory, parts)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(directory)
        if self.args.should_save:
            self._rotate(os.path.dirname(directory))

    def _commit(self, directory: str, parts: dict[str, Any]) -> None:
        place = Path(directory) / "training_args.json"
        place.write_text(json.dumps(parts["training_args"], indent=2) + "\n", encoding="utf-8")
        fsync_files(directory)
        state = {"global_step": self.state.global_step, **parts}
        save(state, state_directory(directory), **self.jsonckpt_options)

    def _rotate(self, run: str) -> None:
        """Remove old checkpoints as the Trainer does."""
        try:
            from transformers.trainer_utils import rotate_checkpoints
        except ImportError:  # transformers 5.0
            self._rotate_checkpoints(use_mtime=True, output_dir=run)
            return
        rotate_checkpoints(
            output_dir=run,
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._json_parts is None:  # else it is pushed when it is whole
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._json_parts is None or output_dir is None:
            super()._save(output_dir, state_dict)
            return
        self._json_directory = output_dir
        if not self.args.should_save:
            return
        os.makedirs(output_dir, exist_ok=True)
        model = self._plain_model()
        kept = trained_tensors(model)
        self._json_parts["model"] = kept if kept is not model else model.state_dict()
        parts: list[Any] = [getattr(model, name, None) for name in ("config", "generation_config")]
        parts.append(self.processing_class or getattr(self.data_collator, "tokenizer", None))
        places = [(part, output_dir) for part in parts if hasattr(part, "save_pretrained")]
        for name, adapter in dict(getattr(model, "peft_config", None) or {}).items():
            place = output_dir if name == "default" else os.path.join(output_dir, name)
            places.append((adapter, place))
        for part, place in places:
            part.save_pretrained(place)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._json_parts is None:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            self._json_parts["optimizer"] = self.optimizer.state_dict()
            self._json_parts["lr_scheduler"] = self.lr_scheduler.state_dict()

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if self._json_parts is None:
            super()._save_scaler(output_dir)
        elif scaler is not None and self.args.should_save:
            self._json_parts["scaler"] = scaler.state_dict()

    def _save_rng_state(self, output_dir: str) -> None:
        if self._json_parts is None:
            super()._save_rng_state(output_dir)
        else:
            self._json_parts["rng"] = gather_values(self.accelerator, rng_state())

    # --- resuming ---------------------------------------------------------------------------------

    def _plain_model(self, model: Any = None) -> Any:
        """The model without the wrappers of DDP and torch.compile."""
        model = self.model if model is None else model
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if has_json(resume_from_checkpoint):
            load_weights(self._plain_model(model), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if has_json(best):
            load_weights(self._plain_model(), best)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not has_json(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        device = self.args.device

        def to_device(storage: Any, location: str) -> Any:
            return storage if location == "cpu" else storage.to(device)

        saved = load_part(checkpoint, "optimizer", to_device)
        if saved is None:
            warnings.warn(
                f"{checkpoint} has weights only (save_only_model=True): the optimizer, the "
                "schedule and the random numbers begin anew",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        wrapper: Any = self.optimizer
        restore_optimizer(getattr(wrapper, "optimizer", wrapper), saved)
        self.lr_scheduler.load_state_dict(load_part(checkpoint, "lr_scheduler"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is None or not has_json(checkpoint):
            super()._load_scaler(checkpoint)
        elif scaler is not None and (state := load_part(checkpoint, "scaler")) is not None:
            scaler.load_state_dict(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or not has_json(checkpoint):
            super()._load_rng_state(checkpoint)
            return
        states = load_part(checkpoint, "rng")
        if states is None:
            return  # save_only_model, of which the optimizer has warned
        ranks, rank = self.args.world_size, self.args.process_index
        try:
            if len(states) != ranks:
                raise StateMismatchError(f"{checkpoint} was saved by {len(states)} ranks")
            set_rng_state(states[rank])
        except StateMismatchError as error:
            warnings.warn(
                f"the random numbers do not go on as before: {error}", RuntimeWarning, stacklevel=2
            )


class JsonTrainer(JsonCheckpointTrainerMixin, Trainer):
    """The Hugging Face Trainer with :class:`JsonCheckpointTrainerMixin`."""


def _plain(arguments: Mapping[str, Any]) -> Any:
    """Arguments as plain JSON. What is no JSON is written as text, for people."""
    return json.loads(json.dumps(arguments, default=str))
