"""Adapts `compact` to a recording: a short training on points followed through it, kept only if a part improves that
was not trained on.

Only the attention between two images is trained. What an image's features come from stays, and so do the archives and
the place descriptor that are made of them.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from loftr_ros.matcher.checkpoints.files import (
    check_weights,
    load_network,
    read_weights,
    recognise_file,
    save_network_weights,
)
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.config import CompactConfig
from loftr_ros.recordings import Source, SourceFrame
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.training.assets import AssetBank, default_folder
from loftr_ros.training.callbacks import LAST
from loftr_ros.training.chains import ChainedPair, Chains, parted, spread_out
from loftr_ros.training.config_file import config_of
from loftr_ros.training.data import KnownBatches
from loftr_ros.training.dataset import PairBatches, collate
from loftr_ros.training.metrics import mean_metrics, pair_metrics
from loftr_ros.training.mixture import WEIGHTS, Curriculum, Mixture, PairSource, made_sources
from loftr_ros.training.photometric import photograph
from loftr_ros.training.sample import Sample
from loftr_ros.training.supervision import pair_batch
from loftr_ros.training.trainer import TrainingData, train

# Part of the recording, its last one, that is not trained on.
HELD_OUT = 0.25
# Part of the time that following points may take.
_FOLLOWING = 0.4
# Least pairs to train on, and held out; the most of each.
_LEAST, _LEAST_HELD_OUT, _MOST, _MOST_HELD_OUT = 20, 8, 600, 40
# Longer side of the images in training. Frames between two starts of chains.
_SIDE, _EVERY = 640, 3
# Least gain on the held-out part, in standard errors of its mean.
_CERTAIN = 2.0
_BATCH = 2
_ENDLESS = 10**9
# Part of the pairs that are made of photos and textures, if there are any, so that less is forgotten.
_MADE = 0.3
_RATE = 5e-4

_logger = logging.getLogger(__name__)


class AdaptationError(RuntimeError):
    """A recording or network that cannot be adapted to or by. The message says what to do."""


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation did.

    Attributes:
        frames: that points were followed through.
        pairs, held_out: numbers of pairs.
        steps: of the training.
        before, after: metrics on the held-out pairs by name, see `pair_metrics`.
        gain: of their score, and its standard error.
        written: whether the weights were written.
    """

    frames: int
    pairs: int
    held_out: int
    steps: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    gain: tuple[float, float]
    written: bool


@dataclass(frozen=True)
class ChainedSource:
    """Pairs of a recording as a source of a mixture."""

    pairs: Sequence[ChainedPair]

    def sample(self, rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> Sample:
        """A random pair, either image in a somewhat worse picture."""
        made = self.pairs[int(rng.integers(len(self.pairs)))].sample(size)
        # Half of the pairs backwards: what is near gets far.
        if rng.random() < 0.5:
            made = Sample(made.image1, made.image0, made.warp10, made.warp01, made.kind)
        image0, image1 = (
            photograph(image, rng, 0.3 * difficulty * float(rng.random()), softness=0.0)[0]
            if rng.random() < 0.5
            else image
            for image in (made.image0, made.image1)
        )
        return Sample(image0, image1, made.warp01, made.warp10, made.kind)


def adapt(
    source: Source,
    weights: Path,
    target: Path,
    minutes: float,
    *,
    frames: Iterable[SourceFrame] | None = None,
    seed: int = 0,
    threads: int = 0,
    steps: int = 0,
) -> Adaptation:
    """Tune weights on a recording, and write them if its held-out part improves for certain.

    Args:
        source: the recording, of a calibrated camera.
        weights: a file of `compact`.
        target: the file to write.
        minutes: for everything, about.
        frames: of the source, instead of those that it yields.
        seed: of the training.
        threads: of torch; 0 for the number of cores.
        steps: most steps of the training; 0 for as many as fit into the time.

    Raises:
        AdaptationError: the camera is not calibrated, moves too little, or the network is another one.
        SourceError: a frame cannot be read.
        TrainingError: see `train`.
        WeightsError: the weights are missing or damaged.
    """
    started = time.monotonic()
    file = read_weights(weights)
    config = recognise_file(file).config
    if not isinstance(config, CompactConfig):
        raise AdaptationError(f"{weights} holds '{config.name}': only compact adapts to a recording")
    every, count, size = _followed(source if frames is None else frames, config, started + 60 * _FOLLOWING * minutes)
    pairs, held_out = parted(every, count, HELD_OUT)
    pairs, held_out = spread_out(pairs, _MOST), spread_out(held_out, _MOST_HELD_OUT)
    if len(pairs) < _LEAST or len(held_out) < _LEAST_HELD_OUT:
        raise AdaptationError(
            f"{source.name}: {count} frames give {len(pairs)} pairs of distant views, and {len(held_out)} in the last "
            f"quarter; {_LEAST} and {_LEAST_HELD_OUT} are needed: record more, of a camera that moves and turns"
        )
    _logger.info("%d pairs from %d frames, and %d held out", len(pairs), count, len(held_out))
    before = _metrics(weights, held_out, size)
    with tempfile.TemporaryDirectory() as folder:
        left = minutes - (time.monotonic() - started) / 60
        reached = _train(config, weights, pairs, held_out, size, 0.85 * left, Path(folder), (seed, threads, steps))
        tuned = read_weights(Path(folder) / LAST)
    used = check_weights(config, tuned)
    about = f"{file.metadata.get('source', weights.name)}; adapted to {source.name}, {count} frames, {reached} steps"
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "adapted.safetensors"
        save_network_weights(trial, used, config, about)
        after = _metrics(trial, held_out, size)
    gains = np.array([b["score"] - a["score"] for a, b in zip(before, after, strict=True)])
    gain = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
    written = gain[0] > _CERTAIN * gain[1]
    if written:
        save_network_weights(target, used, config, about)
    means = mean_metrics(before), mean_metrics(after)
    return Adaptation(count, len(pairs), len(held_out), reached, *means, gain, written)


def trained_parts(config: CompactConfig) -> list[str]:
    """Prefixes of the trained weights: the layers after the first that needs a second image.

    Raises:
        AdaptationError: the network has none.
    """
    layers = config.transformer.layers
    if "cross" not in layers:
        raise AdaptationError("the network has no attention between two images, which is what adapts")
    return [f"transformer.layers.{number}." for number in range(layers.index("cross"), len(layers))]


def _followed(
    frames: Iterable[SourceFrame], config: CompactConfig, until: float
) -> tuple[list[ChainedPair], int, tuple[int, int]]:
    """Pairs of a recording, the number of its frames, and the size of its images in training."""
    stride = config.backbone.stride
    chains, reader, pairs, size, count = Chains(stride, (stride - 1) / 2, _EVERY), FrameReader(), [], (0, 0), 0
    for each in frames:
        frame = reader.read(each)
        if frame.camera is None:
            raise AdaptationError(f"{each.which} has no calibration, which the check of points needs: give --camera")
        scale = min(1.0, _SIDE / max(frame.size))
        now = tuple(max(16, round(side * scale / 16) * 16) for side in frame.size)
        size = size if count else (now[0], now[1])
        image = np.asarray(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), np.uint8)
        pairs += chains.add(count, image, frame.camera)
        count += 1
        if time.monotonic() > until:
            _logger.warning("only the first %d frames are used: more need more minutes", count)
            break
    return pairs, count, size


def _train(
    config: CompactConfig,
    weights: Path,
    pairs: Sequence[ChainedPair],
    held_out: Sequence[ChainedPair],
    size: tuple[int, int],
    minutes: float,
    folder: Path,
    options: tuple[int, int, int],
) -> int:
    """Train, and get the number of steps."""
    seed, threads, steps = options
    settings = config_of(
        {
            "seed": seed,
            "network": {"preset": config.name, "initial": str(weights)},
            "losses": {
                "focal_alpha": 1.0,
                "negatives": "none",
                "cell_weight": 0.25,
                "fine_weight": 0.0,
                "heat_weight": 0.0,
                "fine_samples": 16,
            },
            "optimizer": {
                "learning_rate": _RATE,
                "warmup_steps": 20,
                "ema_decay": 0.98,
                "only": " ".join(trained_parts(config)),
            },
            "budget": {"max_minutes": max(minutes, 0.1), "max_steps": steps},
            "validation": {"every_steps": _ENDLESS // 1000, "batches": 1},
            "machine": {"workers": 0, "threads": threads, "checkpoint_minutes": 600.0, "log_every_steps": 20},
        }
    )
    sources: dict[str, PairSource] = {"chained": ChainedSource(pairs)}
    shares = {"chained": 1.0}
    if default_folder().is_dir():
        sources |= made_sources(AssetBank(default_folder()))
        total = sum(WEIGHTS.values())
        shares = {"chained": 1 - _MADE} | {name: _MADE * weight / total for name, weight in WEIGHTS.items()}
    else:
        _logger.info("trained on the recording alone: with the photos of `loftr_ros train assets` it forgets less")
    mixture = Mixture(sources, shares, seed, Curriculum(1.0, 1.0, 0))
    batches = KnownBatches(PairBatches(mixture, _BATCH, _ENDLESS, (size,)), frozenset(WEIGHTS))
    shown = pair_batch(collate([held_out[0].sample(size)]))
    train(settings, TrainingData(batches, [shown]), folder, progress=False)
    return int(torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _metrics(weights: Path, pairs: Sequence[ChainedPair], size: tuple[int, int]) -> list[dict[str, float]]:
    matcher = load_network("compact", weights, torch.device("cpu"), torch.float32)
    assert isinstance(matcher, Compact)
    found: list[dict[str, float]] = []
    for pair in pairs:
        batch = pair_batch(collate([pair.sample(size)]))
        batch.complete.fill_(False)
        found += pair_metrics(matcher, batch)
    return found
