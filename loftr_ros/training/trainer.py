"""A training from its settings to its weights file, by Lightning's trainer."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as lightning
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset, Sampler

from loftr_ros.matcher.checkpoints.files import read_weights
from loftr_ros.matcher.precision import resolve_device, resolve_precision
from loftr_ros.training.callbacks import BEST, CHECKPOINT, LAST, Averaging, Checkpoints, HeldOut, Lines, Validation
from loftr_ros.training.config import TrainingConfig
from loftr_ros.training.config_file import content_of, write_config
from loftr_ros.training.module import InterruptedTrainingError, TrainingError, TrainingModule
from loftr_ros.training.objective import open_objective

_PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}

_logger = logging.getLogger(__name__)


class Batches(Protocol):
    """Batches by number: the same number always gives the same batch."""

    def __getitem__(self, number: int) -> Any:
        """A `PairBatch`, or input of `supervision.pair_batch`."""


@dataclass(frozen=True)
class TrainingData:
    """Endless training batches, and validation batches."""

    train: Batches
    held_out: HeldOut


def train(
    config: TrainingConfig, data: TrainingData, output: Path, *, resume: bool = False, progress: bool = True
) -> dict[str, float]:
    """Train a network, and write its weights.

    Args:
        config: all settings.
        data: the batches.
        output: folder for checkpoints, logs and weights: best.safetensors, of the averaged weights with the best score
            on held-out pairs; last.safetensors; last.ckpt, for resuming; config.yaml.
        resume: continue from last.ckpt; start if there is none.
        progress: a progress bar, instead of a line every few steps.

    Returns:
        The last logged values by name.

    Raises:
        TrainingError: the folder has a training already, or one of another network; no gradient is finite.
        InterruptedTrainingError: Ctrl-C.
        WeightsError: initial weights, or a teacher's, are missing or of another network.
        DeviceError: the device or precision is not available.
    """
    checkpoint = _checkpoint(config, output, resume)
    if checkpoint is not None and _used_up(config, checkpoint):
        _logger.info("%s has used up its budget: give it more by budget.max_steps or budget.max_minutes", output)
        return {}
    device = own_device(resolve_device(config.machine.accelerator), config.machine.devices)
    keep_freed_memory()
    if config.machine.threads:
        torch.set_num_threads(config.machine.threads)
    torch.manual_seed(config.seed)
    objective = open_objective(config.network_config(), config.losses, config.distillation, device, config.photos)
    if config.network.initial and checkpoint is None:
        objective.start_from(read_weights(Path(config.network.initial).expanduser()))
    module = TrainingModule(objective, config)
    write_config(config, output / "config.yaml")
    source = f"loftr_ros train, seed {config.seed}"
    callbacks: list[lightning.Callback] = [
        Averaging(),
        Validation(data.held_out, config.validation.every_steps, output, source),
        Checkpoints(output, config.machine.checkpoint_minutes, source),  # after the states that it must contain
    ]
    if not progress:
        callbacks.append(Lines(config.machine.log_every_steps))
    several = config.machine.devices * config.machine.nodes > 1
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=config.machine.devices,
            num_nodes=config.machine.nodes,
            strategy="ddp" if several else "auto",
            sync_batchnorm=several,
            use_distributed_sampler=False,  # every process selects its own batches by number
            precision=_PRECISIONS[resolve_precision(config.machine.precision, device)],  # type: ignore[arg-type]
            max_epochs=-1,
            callbacks=callbacks,
            logger=_log(output),
            log_every_n_steps=config.machine.log_every_steps,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
        )
        try:
            trainer.fit(module, datamodule=_Data(data.train, config.machine.workers), ckpt_path=checkpoint)
        except SystemExit:  # which Lightning makes of Ctrl-C
            if not trainer.interrupted:
                raise
    if trainer.interrupted:
        raise InterruptedTrainingError(
            f"stopped at step {module.global_step}; --resume continues from the last checkpoint"
        )
    _logger.info("step %d: %s and %s are written to %s", module.global_step, BEST, LAST, output)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def own_device(device: torch.device, devices: int) -> torch.device:
    """The GPU of this process, if several processes have one each; their launcher numbered them.

    Args:
        device: the first GPU, or the CPU.
        devices: number of training GPUs of this machine.
    """
    if device.type != "cuda" or devices == 1:
        return device
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"  # the first one has no number yet
    return torch.device("cuda", int(number))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    A step allocates and frees hundreds of megabytes in the same sizes as the one before. Getting them from the system
    again, page by page, takes a third of a training's time on a CPU. No effect with other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)
    if not mallopt(mmap_threshold, 2**30):
        mallopt(mmap_threshold, 2**25)  # the most that older versions accept


class _Numbers(Sampler[int]):
    """Endless batch numbers from the training's current one; each process takes every n-th."""

    def __init__(self, start: int, step: int) -> None:
        self._start, self._step = start, step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start, self._step)


class _ByNumber(Dataset[Any]):
    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> Any:
        return self._batches[number]


class _Data(lightning.LightningDataModule):
    """The loader starts at the batch of the resumed training, whatever the number of data processes."""

    def __init__(self, batches: Batches, workers: int) -> None:
        super().__init__()
        self._batches, self._workers = batches, workers

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        world = trainer.world_size
        return DataLoader(
            _ByNumber(self._batches),
            sampler=_Numbers(trainer.global_step * world + trainer.global_rank, world),
            batch_size=None,  # a number is a whole batch
            num_workers=self._workers,
            prefetch_factor=4 if self._workers else None,
            worker_init_fn=_start_worker,
            # Not a fork of this process, which may not survive a fork after running other libraries' threads.
            multiprocessing_context="forkserver" if self._workers else None,
            pin_memory=torch.cuda.is_available(),
        )


def _start_worker(_: int) -> None:
    """A data process leaves the cores to the training."""
    torch.set_num_threads(1)
    os.nice(5)
    if importlib.util.find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(0)


def _checkpoint(config: TrainingConfig, output: Path, resume: bool) -> Path | None:
    """The checkpoint to continue from.

    Raises:
        TrainingError: there is one, but resume was not requested; or it is of another network.
    """
    path = output / CHECKPOINT
    if not path.is_file():
        if resume:
            _logger.info("%s has no %s: the training starts", output, CHECKPOINT)
        return None
    if not resume:
        raise TrainingError(f"{output} has a training already: continue it with --resume, or name another --output")
    try:
        # Memory-mapped, because only the settings are read here.
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["loftr_ros"]["config"]
    except Exception as error:  # any error of the loader
        raise TrainingError(f"{path} is not a checkpoint of a training ({error}); remove it to start again") from error
    before, now = _flat(held), _flat(content_of(config))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    network = [name for name in changed if name == "network.preset" or name.startswith("network.changes")]
    if network:
        raise TrainingError(
            f"{path} is of another network: {network[0]} was {before.get(network[0])!r}, and is "
            f"{now.get(network[0])!r}; name another --output"
        )
    for teacher in ("photos.teacher", "photos.aliked"):
        if bool(before.get(teacher)) != bool(now.get(teacher)):
            raise TrainingError(
                f"{path} was trained {'with' if before.get(teacher) else 'without'} {teacher}, whose heads are in the "
                f"checkpoint: keep that setting, or start another --output with network.initial={output / BEST}"
            )
    for name in changed:
        _logger.warning("%s was %r and is now %r", name, before.get(name), now.get(name))
    return path


def _used_up(config: TrainingConfig, checkpoint: Path) -> bool:
    held = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    budget, step, minutes = config.budget, int(held["global_step"]), float(held["loftr_ros"]["seconds"]) / 60
    return 0 < budget.max_steps <= step or 0 < budget.max_minutes <= minutes


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _log(output: Path) -> Logger:
    """TensorBoard's logger if installed, else a table; a resumed training continues in the same folder."""
    if importlib.util.find_spec("tensorboard") is not None:
        return TensorBoardLogger(output, name="", version="logs")
    return CSVLogger(output, name="logs")  # a new version_N each time: it would overwrite the earlier part


class _quiet_lightning(warnings.catch_warnings):  # noqa: N801
    """Suppress Lightning's advice, which does not apply: the loader has enough processes."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        for message in (
            ".*does not have many workers.*",
            ".*isinstance.treespec.*",
            ".*overridden `transfer_batch_to_device`.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        return entered
