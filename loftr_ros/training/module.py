"""The training as a Lightning module: steps, the learning rate, the averaged weights, and the checkpoint's contents.

Every step depends only on the seed, its number and the state of the weights: data is made by number, random numbers are
seeded by number, and the learning rate is a function of the progress. So a resumed training continues as if it had
never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from loftr_ros.training.config import OptimizerConfig, TrainingConfig
from loftr_ros.training.config_file import content_of
from loftr_ros.training.objective import Objective
from loftr_ros.training.supervision import PairBatch, batch_on

# Consecutive steps without a finite gradient after which a training is aborted.
_MOST_SKIPPED = 50


class TrainingError(RuntimeError):
    """A training that cannot start or continue. The message says what to do."""


class InterruptedTrainingError(TrainingError):
    """A training stopped by Ctrl-C."""


class AveragedWeights:
    """The exponential moving average of a network's state, including its buffers."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start with the current state."""
        self._decay = decay
        self._updates = 0
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the current state; the first ones have more weight, or the random start would persist."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        now = network.state_dict()
        averaged, present = [], []
        for name, value in self.state.items():
            if value.is_floating_point():
                averaged.append(value)
                present.append(now[name])
            else:
                value.copy_(now[name])
        torch._foreach_lerp_(averaged, present, 1 - decay)

    def checkpoint(self) -> dict[str, Any]:
        """State for `restore`."""
        return {"updates": self._updates, "state": self.state}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._updates = checkpoint["updates"]
        for name, value in self.state.items():
            value.copy_(checkpoint["state"][name])


class TrainingModule(LightningModule):
    """A network, its objective and its optimizer."""

    def __init__(self, objective: Objective, config: TrainingConfig) -> None:
        """Use the objective, whose network is trained in place."""
        super().__init__()
        self.network = objective.network
        self._left_alone = freeze(self.network, config.optimizer.only.split())
        self.objective = objective  # not a module: its teacher, if any, is neither trained nor checkpointed
        self.settings = config
        self.averaged = AveragedWeights(self.network, config.optimizer.ema_decay)
        self.best_score = -math.inf
        self._skipped = 0
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, including earlier parts."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """Used part of the budget, 0 to 1."""
        budget = self.settings.budget
        by_steps = self.global_step / budget.max_steps if budget.max_steps else 0.0
        by_time = self.seconds / 60 / budget.max_minutes if budget.max_minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with weight decay only for matrices and kernels."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        settings = self.settings.optimizer
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)

    def on_fit_start(self) -> None:
        """Move the averaged weights to the network's device."""
        self.averaged.state = {name: value.to(self.device) for name, value in self.averaged.state.items()}
        self._started = time.monotonic()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> PairBatch:
        """Convert any batch of the data to a `PairBatch`, or make it there."""
        return batch_on(batch, device)

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Seed the step, set its learning rate, and keep frozen norms in evaluation mode."""
        for norm in self._left_alone:
            norm.eval()
        torch.manual_seed(_mixed(self.settings.seed, self.global_step, self.global_rank))
        rate = learning_rate(self.settings.optimizer, self.global_step, self.progress)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        total, parts = self.objective.losses(batch)
        self.log("loss", total.detach(), prog_bar=True)
        self.log_dict({f"loss/{name}": value for name, value in parts.items()})
        self.log("learning_rate", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm; a step without a finite gradient changes nothing.

        Raises:
            TrainingError: too many consecutive steps had none.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.optimizer.gradient_clip)
        self.log("gradient_norm", norm)
        if torch.isfinite(norm):
            self._skipped = 0
            return
        self._skipped += 1
        if self._skipped > _MOST_SKIPPED:
            raise TrainingError(
                f"no finite gradient in {_MOST_SKIPPED} steps up to step {self.global_step}: lower "
                "optimizer.learning_rate, or set machine.precision to float32, and resume"
            )
        for parameter in parameters:
            parameter.grad = None

    def on_train_batch_end(self, outputs: Any, batch: PairBatch, batch_idx: int) -> None:
        """Stop at the end of the budget, or of this process's part of it."""
        part = 60 * self.settings.budget.part_minutes
        ends = self.progress >= 1 or 0 < part <= time.monotonic() - self._started
        if self.trainer.strategy.broadcast(ends):
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state unknown to Lightning, which writes weights, optimizer and loss scaling itself."""
        checkpoint["loftr_ros"] = {
            "averaged": self.averaged.checkpoint(),
            "best_score": self.best_score,
            "seconds": self.seconds,
            "config": content_of(self.settings),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        ours = checkpoint["loftr_ros"]
        self.averaged.restore(ours["averaged"])
        self.best_score = ours["best_score"]
        self._seconds_before = ours["seconds"]


def freeze(network: nn.Module, only: Sequence[str]) -> list[nn.Module]:
    """Freeze all but some parts of a network.

    Args:
        network: its parameters get `requires_grad`.
        only: name prefixes of the trained parts; empty for everything.

    Returns:
        The norms that must not update their statistics either.

    Raises:
        TrainingError: a prefix matches nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    for prefix in only:
        if not any(name.startswith(prefix) for name in names):
            raise TrainingError(f"optimizer.only: the network has no weights called '{prefix}...'")
    if not only:
        return []
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(only)))
    norms = (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if not any(parameter.requires_grad for parameter in norm.parameters())]


def learning_rate(settings: OptimizerConfig, step: int, progress: float) -> float:
    """Warm-up by steps, then half a cosine over the budget.

    Args:
        settings: the highest rate, the warm-up's length and the final fraction.
        step: from 0.
        progress: used part of the budget, 0 to 1.
    """
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return settings.learning_rate * warm * (settings.final_fraction + (1 - settings.final_fraction) * cosine)


def _mixed(seed: int, step: int, rank: int) -> int:
    """One seed from three numbers, so that neighbouring ones are unrelated."""
    value = 0
    for number in (seed, step, rank):
        value = ((value ^ number) * 0x9E3779B97F4A7C15 + 0x7F4A7C159E3779B9) % 2**64
        value ^= value >> 29
    return value % 2**63
