"""The batches of a training: synthetic ones, recorded ones, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loftr_ros.settings import ConfigError
from loftr_ros.training.assets import AssetBank, default_folder
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


def open_data(settings: TrainingConfig) -> TrainingData:
    """The batches to train on, and held-out ones: of photos and textures, and of recorded sets marked so.

    Args:
        settings: of the training; its seed applies to the training batches, the held-out ones are always the same.

    Raises:
        AssetError: synthetic pairs are needed, and there are no photos and textures.
        RecordedError: a recorded set is missing or damaged.
        ConfigError: an entry of `recorded` has an unknown argument; nothing is held out.
    """
    config = settings.data
    weights = {name: weight for name, weight in asdict(settings.made).items() if weight > 0}
    made = frozenset(asdict(settings.made))
    folder = Path(config.assets).expanduser() if config.assets else default_folder()
    rising = Curriculum(config.start_difficulty, config.end_difficulty, config.rising_samples, config.least_part)
    level = Curriculum(config.held_out_difficulty, config.held_out_difficulty, 0)

    def batches(held_out: bool, curriculum: Curriculum, number: int) -> KnownBatches:
        sources: dict[str, PairSource] = {}
        shares = dict(weights)
        if weights:
            sources |= made_sources(AssetBank(folder, validation=held_out), config.light)
        for index, entry in enumerate(config.recorded):
            if bool(entry.get("held_out", False)) == held_out:
                name = f"{entry['set']}.{index}"
                sources[name] = _recorded(entry)
                shares[name] = float(entry.get("weight", 1.0))
        if not shares:
            what = "held out: mark an entry of data.recorded by held_out: true" if held_out else "to train on"
            raise ConfigError(f"data has nothing {what}")
        mixture = Mixture(sources, shares, 0 if held_out else settings.seed, curriculum, validation=held_out)
        photos = None
        if settings.photos.teacher and not held_out:
            photos = PhotoViews(AssetBank(folder), settings.photos.count, settings.photos.light, settings.seed)
        return KnownBatches(PairBatches(mixture, config.batch_size, number, config.sizes), made, photos)

    return TrainingData(batches(False, rising, _ENDLESS), batches(True, level, settings.validation.batches))


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
