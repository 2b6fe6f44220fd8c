"""The batches of a training: synthetic ones, recorded ones, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loftr_ros.matcher.precision import resolve_device
from loftr_ros.settings import ConfigError
from loftr_ros.training.asset_pack import unpacked
from loftr_ros.training.assets import AssetBank, default_folder
from loftr_ros.training.batched.pairs import KINDS, planners
from loftr_ros.training.batched.recipes import Recipe, Recipes
from loftr_ros.training.config import RECORDED_SETS, TrainingConfig
from loftr_ros.training.dataset import PairBatches
from loftr_ros.training.mixture import Curriculum, Mixture, PairSource, made_sources
from loftr_ros.training.photos import PhotoViews
from loftr_ros.training.supervision import PairBatch, TaughtBatch
from loftr_ros.training.trainer import TrainingData

_ENDLESS = 10**9  # batches; more than any training uses


@dataclass(frozen=True)
class KnownBatches:
    """Batches that mark pairs with complete ground truth: the synthetic ones. Measured depth may have gaps.

    Attributes:
        batches: by number.
        made: kinds of synthetic pairs.
        photos: photographs added to each batch; None for none.
    """

    batches: PairBatches
    made: frozenset[str]
    photos: PhotoViews | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> PairBatch:
        batch = self.batches[number]
        complete = torch.tensor([kind in self.made for kind in batch.kinds])
        pairs = batch.image0, batch.image1, batch.warp01, batch.warp10, complete
        if self.photos is None:
            return PairBatch(*pairs)
        height, width = batch.image0.shape[2:]
        return TaughtBatch(*pairs, *self.photos.batch(number, (width, height)))


@dataclass(frozen=True)
class MadeBatches:
    """Batches of made pairs by torch.

    Attributes:
        recipes: by number.
        device: on which this process makes the pixels; None if the training makes them, on its own device.
    """

    recipes: Recipes
    device: torch.device | None

    def __len__(self) -> int:
        return len(self.recipes)

    def __getitem__(self, number: int) -> PairBatch | Recipe:
        recipe = self.recipes[number]
        return recipe if self.device is None else recipe.make(self.device)


def open_data(settings: TrainingConfig) -> TrainingData:
    """The batches to train on, and held-out ones: of photos and textures, and of recorded sets marked so.

    Args:
        settings: of the training; its seed applies to the training batches, the held-out ones are always the same.

    Raises:
        AssetError: synthetic pairs are needed, and there are no photos and textures.
        RecordedError: a recorded set is missing or damaged.
        ConfigError: an entry of `recorded` has an unknown argument; nothing is held out; torch cannot make these pairs.
        DeviceError: pairs are to be made on a device that is not available.
    """
    config = settings.data
    weights = {name: weight for name, weight in asdict(settings.made).items() if weight > 0}
    made = frozenset(asdict(settings.made))
    folder = Path(config.assets).expanduser() if config.assets else default_folder()
    if folder.is_file() and weights:
        folder = unpacked(folder)
    rising = Curriculum(config.start_difficulty, config.end_difficulty, config.rising_samples, config.least_part)
    level = Curriculum(config.held_out_difficulty, config.held_out_difficulty, 0)

    def batches(held_out: bool, curriculum: Curriculum, number: int) -> KnownBatches | MadeBatches:
        recorded = [entry for entry in config.recorded if bool(entry.get("held_out", False)) == held_out]
        if settings.machine.data_device and weights and not recorded:
            return made_batches(held_out, curriculum, number)
        sources: dict[str, PairSource] = {}
        shares = dict(weights)
        if weights:
            sources |= made_sources(AssetBank(folder, validation=held_out), config.light)
        for index, entry in enumerate(config.recorded):
            if entry in recorded:
                name = f"{entry['set']}.{index}"
                sources[name] = _recorded(entry)
                shares[name] = float(entry.get("weight", 1.0))
        if not shares:
            what = "held out: mark an entry of data.recorded by held_out: true" if held_out else "to train on"
            raise ConfigError(f"data has nothing {what}")
        mixture = Mixture(sources, shares, 0 if held_out else settings.seed, curriculum, validation=held_out)
        photos = None
        if settings.photos.has_teacher and not held_out:
            photos = PhotoViews(AssetBank(folder), settings.photos.count, settings.photos.light, settings.seed)
        return KnownBatches(PairBatches(mixture, config.batch_size, number, config.sizes), made, photos)

    def made_batches(held_out: bool, curriculum: Curriculum, number: int) -> MadeBatches:
        bank = AssetBank(folder, validation=held_out)
        of_kind = planners(bank)
        seed = 0 if held_out else settings.seed
        mixture = Mixture({name: of_kind[name] for name in weights}, weights, seed, curriculum, validation=held_out)
        photos = None
        if settings.photos.has_teacher and not held_out:
            photos = PhotoViews(bank, settings.photos.count, settings.photos.light, settings.seed)
        size = config.batch_size
        return MadeBatches(Recipes(bank, mixture, size, number, config.light, config.sizes, photos), device)

    device = _data_device(settings, set(weights)) if settings.machine.data_device else None
    return TrainingData(batches(False, rising, _ENDLESS), batches(True, level, settings.validation.batches))


def _data_device(settings: TrainingConfig, kinds: set[str]) -> torch.device | None:
    """The device of `MadeBatches`."""
    if any(not entry.get("held_out", False) for entry in settings.data.recorded):
        raise ConfigError("machine.data_device: torch makes no recorded pairs; leave it empty, or data.recorded")
    if others := kinds - set(KINDS):
        raise ConfigError(
            f"machine.data_device: torch does not make {', '.join(sorted(others))}; set made.{min(others)} to 0"
        )
    training = resolve_device(settings.machine.accelerator)
    if settings.machine.data_device == "cuda" and training.type != "cuda":
        raise ConfigError(
            "machine.data_device is cuda, and the training is on the CPU; set machine.accelerator to cuda"
        )
    here = settings.machine.data_device == "cpu" or training.type == "cpu"
    return torch.device("cpu") if here else None


def _recorded(entry: Mapping[str, Any]) -> PairSource:
    from loftr_ros.training import recorded_sets

    kind = getattr(recorded_sets, RECORDED_SETS[entry["set"]])
    arguments = {
        name: Path(value).expanduser() if isinstance(value, str) else value
        for name, value in entry.items()
        if name not in ("set", "weight", "held_out")
    }
    try:
        source: PairSource = kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"data.recorded, {entry['set']}: {error}") from error
    return source
