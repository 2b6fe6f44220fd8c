"""What happens beside the steps: averaging, validation with the best state kept, checkpoints, lines for people."""

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
from loftr_ros.training.supervision import pair_batch

CHECKPOINT = "last.ckpt"
BEST = "best.safetensors"
LAST = "last.safetensors"
BEST_METRICS = "best.json"

_logger = logging.getLogger(__name__)


class HeldOut(Protocol):
    """Batches by number that training never sees, the same ones every time."""

    def __getitem__(self, number: int) -> Any:
        """A `PairBatch`, or what `supervision.pair_batch` makes one of."""

    def __len__(self) -> int:
        """How many there are."""


class Averaging(lightning.Callback):
    """Takes the weights of every step into their average; before what validates or keeps it."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the step."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.averaged.update(pl_module.network)


class Validation(lightning.Callback):
    """Matches held-out pairs with the averaged weights, as an inference network would, and keeps the best of them.

    Not Lightning's own validation loop: that validates the module in training, and this the network that gets exported,
    at steps that stay the same when a training is resumed.
    """

    def __init__(self, batches: HeldOut, every_steps: int, output: Path, source: str) -> None:
        """Say what it works with.

        Args:
            batches: held-out pairs by number.
            every_steps: steps from one validation to the next.
            output: folder for the weights.
            source: what the weights file says of where it is from.
        """
        self._batches, self._every_steps = batches, every_steps
        self._output, self._source = output, source

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Before the first step, to see what training brings; weights that nothing was learned by are not kept."""
        if trainer.global_step == 0:
            self._validate(trainer, pl_module, keep=False)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every so many steps."""
        if trainer.global_step % self._every_steps == 0:
            self._validate(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Once more, unless it just did; and the last state's weights."""
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
                pairs += objective.metrics(matcher, pair_batch(self._batches[number]).to(module.device))
        metrics = mean_metrics(pairs)
        if trainer.logger is not None:
            trainer.logger.log_metrics(
                {f"held_out/{name}": value for name, value in metrics.items() if math.isfinite(value)},
                trainer.global_step,
            )
        better = keep and metrics["score"] > module.best_score
        said = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        _logger.info(
            "step %d, %.1f min: %s%s (%.1f s)",
            trainer.global_step,
            module.seconds / 60,
            said,
            ": the best so far" if better else "",
            time.monotonic() - started,
        )
        if better:
            module.best_score = metrics["score"]
            export(module, self._output / BEST, self._source)
            about = {"step": trainer.global_step, "minutes": round(module.seconds / 60, 2), **metrics}
            (self._output / BEST_METRICS).write_text(json.dumps(about, indent=2) + "\n")


def export(module: TrainingModule, path: Path, source: str) -> None:
    """Write the averaged weights as a file that a network is loaded from."""
    exported: dict[str, Tensor] = module.objective.exported(module.averaged.state)
    about = f"{source}, step {module.global_step}, {module.seconds / 60:.0f} minutes"
    save_network_weights(path, exported, module.objective.config, about)


class Checkpoints(lightning.Callback):
    """Writes the whole state every few minutes and at the end, and its averaged weights for whoever wants to look.

    Either file is there whole or not at all.
    """

    def __init__(self, output: Path, minutes: float, source: str) -> None:
        """Say where and how often, and what the weights file says of where it is from."""
        self._path, self._seconds = output / CHECKPOINT, 60 * minutes
        self._weights, self._source = output / LAST, source
        self._last = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The time counts from here."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """When it is time; the first process decides for all, since all take part in writing."""
        if trainer.strategy.broadcast(time.monotonic() - self._last >= self._seconds):
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """At the end, so that a training can be made longer."""
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
    """One line every so many steps where there is no progress bar to look at."""

    def __init__(self, every_steps: int) -> None:
        """Say how often."""
        self._every_steps = every_steps
        self._last = (0, time.monotonic())

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count from where it resumes."""
        self._last = (trainer.global_step, time.monotonic())

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A line."""
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
        said = ", ".join(f"{name} {value:.4f}" for name, value in parts.items())
        _logger.info("step %d, %.1f min, %.2f steps/s: %s", step, pl_module.seconds / 60, speed, said)
