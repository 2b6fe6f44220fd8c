"""Tasks beside the training steps: averaging, validation with the best state kept, checkpoints, log lines."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as lightning
import torch
from torch import Tensor

from loftr_ros.matcher.checkpoints.files import save_network_weights
from loftr_ros.training.metrics import mean_metrics
from loftr_ros.training.module import TrainingModule
from loftr_ros.training.supervision import batch_on

CHECKPOINT = "last.ckpt"
BEST = "best.safetensors"
LAST = "last.safetensors"
BEST_METRICS = "best.json"

_logger = logging.getLogger(__name__)


class HeldOut(Protocol):
    """Held-out batches by number, always the same ones."""

    def __getitem__(self, number: int) -> Any:
        """A `PairBatch`, or input of `supervision.pair_batch`."""

    def __len__(self) -> int:
        """Number of batches."""


class Averaging(lightning.Callback):
    """Adds the weights of every step to their average, before validation and checkpoints use it."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the step."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.averaged.update(pl_module.network)


class Validation(lightning.Callback):
    """Matches held-out pairs with the averaged weights, as in inference, and keeps the best weights.

    Lightning's own validation loop is not used: it validates the module in training. This one validates the exported
    network, at steps that stay the same when a training is resumed.
    """

    def __init__(self, batches: HeldOut, every_steps: int, output: Path, source: str) -> None:
        """Create it.

        Args:
            batches: held-out pairs by number.
            every_steps: steps between validations.
            output: folder for the weights.
            source: description of the origin in the weights file.
        """
        self._batches, self._every_steps = batches, every_steps
        self._output, self._source = output, source

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate before the first step, as a baseline; untrained weights are not kept."""
        if trainer.global_step == 0:
            self._validate(trainer, pl_module, keep=False)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate every `every_steps` steps."""
        if trainer.global_step % self._every_steps == 0:
            self._validate(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate at the end, unless just done; and write the last weights."""
        if trainer.global_step % self._every_steps:
            self._validate(trainer, pl_module)
        if trainer.is_global_zero:
            assert isinstance(pl_module, TrainingModule)
            export(pl_module, self._output / LAST, self._source)

    def _validate(self, trainer: lightning.Trainer, module: lightning.LightningModule, *, keep: bool = True) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(module, TrainingModule)
        objective, started = module.objective, time.monotonic()
        with torch.no_grad():
            matcher = objective.matcher(module.averaged.state)
            pairs = []
            for number in range(len(self._batches)):
                pairs += objective.metrics(matcher, batch_on(self._batches[number], module.device))
        metrics = mean_metrics(pairs)
        if trainer.logger is not None:
            trainer.logger.log_metrics(
                {f"held_out/{name}": value for name, value in metrics.items() if math.isfinite(value)},
                trainer.global_step,
            )
        better = keep and metrics["score"] > module.best_score
        summary = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        _logger.info(
            "step %d, %.1f min: %s%s (%.1f s)",
            trainer.global_step,
            module.seconds / 60,
            summary,
            ": the best so far" if better else "",
            time.monotonic() - started,
        )
        if better:
            module.best_score = metrics["score"]
            export(module, self._output / BEST, self._source)
            about = {"step": trainer.global_step, "minutes": round(module.seconds / 60, 2), **metrics}
            (self._output / BEST_METRICS).write_text(json.dumps(about, indent=2) + "\n")


def export(module: TrainingModule, path: Path, source: str) -> None:
    """Write the averaged weights as a weights file."""
    exported: dict[str, Tensor] = module.objective.exported(module.averaged.state)
    about = f"{source}, step {module.global_step}, {module.seconds / 60:.0f} minutes"
    save_network_weights(path, exported, module.objective.config, about)


class Checkpoints(lightning.Callback):
    """Writes the whole state every few minutes and at the end, and its averaged weights for inspection.

    Both files are written atomically.
    """

    def __init__(self, output: Path, minutes: float, source: str) -> None:
        """Set folder, interval, and the origin in the weights file."""
        self._path, self._seconds = output / CHECKPOINT, 60 * minutes
        self._weights, self._source = output / LAST, source
        self._last = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The interval starts here."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write when it is time; the first process decides for all, because all take part in writing."""
        if trainer.strategy.broadcast(time.monotonic() - self._last >= self._seconds):
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write at the end, so that a training can be extended."""
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        part = self._path.with_suffix(".part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(self._path)
            assert isinstance(trainer.lightning_module, TrainingModule)
            export(trainer.lightning_module, self._weights, self._source)
        self._last = time.monotonic()


class Lines(lightning.Callback):
    """Log a line every few steps if there is no progress bar."""

    def __init__(self, every_steps: int) -> None:
        """Set the interval."""
        self._every_steps = every_steps
        self._last = (0, time.monotonic())

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count from the step of the resumed training."""
        self._last = (trainer.global_step, time.monotonic())

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a line."""
        if trainer.global_step % self._every_steps or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, TrainingModule)
        step, now = trainer.global_step, time.monotonic()
        speed = (step - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = (step, now)
        parts = {
            name.removeprefix("loss/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("loss")
        }
        summary = ", ".join(f"{name} {value:.4f}" for name, value in parts.items())
        _logger.info("step %d, %.1f min, %.2f steps/s: %s", step, pl_module.seconds / 60, speed, summary)
