"""Objectives: a network's losses on a batch, and its metrics. One class per family of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.build import build_network
from loftr_ros.matcher.checkpoints.files import WeightsFile, check_weights, load_network
from loftr_ros.matcher.config import AUTO, CompactConfig, LoFTRConfig, NetworkConfig
from loftr_ros.matcher.interface import Matcher
from loftr_ros.matcher.loftr.fine import expectation, heat_map
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.position import position_encoding
from loftr_ros.settings import ConfigError
from loftr_ros.training.aliked import load_aliked
from loftr_ros.training.coarse_losses import dual_softmax_losses, positive_loss, weighed
from loftr_ros.training.config import DistillationConfig, LossConfig, PhotosConfig
from loftr_ros.training.distillation import Teacher, soft_target_loss
from loftr_ros.training.feature_teacher import ALIKED_HEADS, ALIKED_LOSSES, FeatureTeacher
from loftr_ros.training.losses import fine_l2, log_assignment, transport_nll
from loftr_ros.training.metrics import pair_metrics
from loftr_ros.training.supervision import CoarseTruth, PairBatch, coarse_truth, fine_truth, sample_matches
from loftr_ros.training.xfeat import load_xfeat


class Objective(ABC):
    """A network and its losses: all that the trainer knows about either.

    Attributes:
        network: the module whose parameters are trained, including heads that only training needs.
        config: the network's configuration, for the exported file's metadata.
    """

    network: nn.Module
    config: NetworkConfig

    @abstractmethod
    def losses(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss, and its parts.

        Called with the network in training mode, under the trainer's autocast, with torch's random numbers seeded by
        the step.

        Args:
            batch: on the network's device.

        Returns:
            () float32, and named scalars for the logs.
        """

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a state dict of `network` for inference, by default all of it, which is written to the weights
        file.
        """
        return dict(state)

    def matcher(self, state: Mapping[str, Tensor]) -> Matcher:
        """A separate inference network with the weights of a state dict of `network`, on the network's device."""
        with torch.random.fork_rng(devices=[]):  # keep the training's random numbers
            network = build_network(self.config)
        network.load_state_dict(self.exported(state))
        return network.prepare(next(self.network.parameters()).device, torch.float32)

    def start_from(self, file: WeightsFile) -> None:
        """Load the network's initial weights from a file; parts only for training keep their random ones.

        Raises:
            WeightsError: they are of another network, or not finite.
        """
        self.network.load_state_dict(check_weights(self.config, file), strict=False)

    def metrics(self, matcher: Matcher, batch: PairBatch) -> list[dict[str, float]]:
        """Metrics of each pair of a batch, including `score`; by default those of `pair_metrics`."""
        return pair_metrics(matcher, batch)


def open_objective(
    config: NetworkConfig,
    losses: LossConfig,
    distillation: DistillationConfig,
    device: torch.device,
    photos: PhotosConfig | None = None,
) -> Objective:
    """The objective of a network, with random weights.

    Args:
        config: the network.
        losses: weights of the losses.
        distillation: the teacher, if any.
        device: of the teachers; the trainer places the network itself.
        photos: the teachers of features, if any.

    Raises:
        WeightsError: a teacher's weights are missing, damaged or of another network.
        ConfigError: a teacher of features, and a network that cannot learn from one.
    """
    teacher = None
    if distillation.teacher:
        from loftr_ros.weights import find_weights

        network = distillation.teacher_network or AUTO
        weights = find_weights(network, distillation.teacher)
        matcher = load_network(network, weights, device, torch.float32)
        teacher = Teacher(matcher, config)
    module, name = OBJECTIVES.get(config.name, ("loftr_ros.training.objective", "LoFTRObjective"))
    make: Callable[..., Objective] = getattr(import_module(module), name)
    if photos is None or not photos.has_teacher:
        return make(config, losses, distillation, teacher)
    if not isinstance(config, CompactConfig):
        raise ConfigError(f"photos.teacher: only compact learns a teacher's features, not {config.name}")
    features = []
    if photos.teacher:
        features.append(FeatureTeacher(load_xfeat(Path(photos.teacher), device), photos))
    if photos.aliked:
        aliked = load_aliked(Path(photos.aliked), device)
        features.append(FeatureTeacher(aliked, photos, ALIKED_HEADS, ALIKED_LOSSES, photos.aliked_weight))
    return make(config, losses, distillation, teacher, *features)


# Networks with their own objective, by preset: module and class, with the arguments of LoFTRObjective.
OBJECTIVES: dict[str, tuple[str, str]] = {"compact": ("loftr_ros.training.compact", "CompactObjective")}


class Forward(NamedTuple):
    """Intermediate results of LoFTR on a batch for the losses.

    Attributes:
        raw0, raw1: (B, L, C) and (B, S, C), the backbone's features before position and attention.
        tokens0, tokens1: the same after the transformer.
        fine0, fine1: (B, Cf, Hf, Wf) fine features, None without a fine stage.
    """

    raw0: Tensor
    raw1: Tensor
    tokens0: Tensor
    tokens1: Tensor
    fine0: Tensor | None
    fine1: Tensor | None


class LoFTRObjective(Objective):
    """The paper's losses (section 3.5) for every preset of `matcher.loftr.LoFTR`."""

    network: LoFTR
    config: LoFTRConfig

    def __init__(
        self, config: LoFTRConfig, losses: LossConfig, distillation: DistillationConfig, teacher: Teacher | None
    ) -> None:
        """A network with random weights.

        Args:
            config: the network.
            losses: weights of the losses.
            distillation: weight of the teacher.
            teacher: a network that provides its confidences for every batch; or None.
        """
        self.config = config
        self.network = LoFTR(config)
        self._losses = losses
        self._distillation = distillation
        self._teacher = teacher
        self._position = lru_cache(maxsize=16)(self._make_position)

    def losses(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective.losses`."""
        truth = coarse_truth(batch, self.config)
        made = self._forward(batch)
        settings = self._losses
        parts = self._coarse_losses(made, truth, batch)
        if settings.feature_weight > 0:
            parts["feature"] = positive_loss(made.raw0, made.raw1, truth, self.config.coarse.temperature, settings)
        if made.fine0 is not None:
            parts["fine"] = self._fine_loss(made, truth)
        return weighed(parts, settings, self._distillation)

    def _forward(self, batch: PairBatch) -> Forward:
        network, pairs = self.network, len(batch)
        images = torch.cat([batch.image0, batch.image1]).contiguous(memory_format=torch.channels_last)
        coarse, unsmoothed = network.backbone(images)
        raw = coarse.flatten(2).transpose(1, 2)
        position = self._position(coarse.shape[2], coarse.shape[3], coarse.device).to(coarse.dtype)
        tokens = network.loftr_coarse.encode(raw + position)
        tokens0, tokens1 = network.loftr_coarse(tokens[:pairs].contiguous(), tokens[pairs:].contiguous())
        fine0 = fine1 = None
        if network.has_fine_stage:
            assert unsmoothed is not None
            fine = network.backbone.smooth(unsmoothed)
            fine0, fine1 = fine[:pairs], fine[pairs:]
        return Forward(raw[:pairs], raw[pairs:], tokens0, tokens1, fine0, fine1)

    def _coarse_losses(self, made: Forward, truth: CoarseTruth, batch: PairBatch) -> dict[str, Tensor]:
        coarse, settings = self.config.coarse, self._losses
        if coarse.method == "dual_softmax":
            return dual_softmax_losses(
                made.tokens0,
                made.tokens1,
                truth,
                coarse.temperature,
                settings,
                self._distillation,
                self._teacher,
                batch,
            )
        bin_score = self.network.coarse_matching.bin_score
        log_plan = log_assignment(made.tokens0, made.tokens1, bin_score, coarse.sinkhorn_iterations)
        positive, negative = transport_nll(log_plan, truth)
        parts = {"coarse": positive, "no_partner": negative}
        if self._teacher is not None:
            taught = self._teacher.confidence(batch.image0, batch.image1)
            parts["soft_target"] = soft_target_loss(log_plan[:, :-1, :-1], taught, self._distillation.temperature)
        return parts

    def _fine_loss(self, made: Forward, truth: CoarseTruth) -> Tensor:
        """The loss of the fine stage on a fixed number of true matches of each pair."""
        assert made.fine0 is not None and made.fine1 is not None and self.config.fine is not None
        cell0, chosen = sample_matches(truth, self._losses.fine_samples)
        cell1 = truth.partner.gather(1, cell0).clamp_min(0)
        network, radius = self.network, self.config.fine.window // 2
        sides = (made.tokens0, made.fine0, cell0, truth.grid0), (made.tokens1, made.fine1, cell1, truth.grid1)
        windows = []
        for tokens, fine, cells, grid in sides:
            channels = tokens.shape[2]
            chosen_tokens = tokens.gather(1, cells[..., None].expand(-1, -1, channels)).reshape(-1, channels)
            window = network.fine_preprocess(self._windows(fine, cells, grid[1]), chosen_tokens)
            windows.append(network.loftr_fine.encode(window))
        windows0, windows1 = network.loftr_fine(*windows)
        with torch.autocast(windows0.device.type, enabled=False):
            found = expectation(heat_map(windows0, windows1))
            offset = (found.offset / radius).view(*cell0.shape, 2)
            std = (found.std.detach() / radius).view(cell0.shape)
            return fine_l2(offset, std, fine_truth(truth, cell0, self.config), chosen)

    def _windows(self, fine: Tensor, cells: Tensor, columns: int) -> Tensor:
        """(B, Cf, Hf, Wf) and (B, N) cells -> (B * N, WW, Cf), zero outside of the image."""
        assert self.config.fine is not None
        side = self.config.fine.window
        ratio = self.config.backbone.stride // self.config.backbone.fine_stride
        padded = functional.pad(fine, (side // 2,) * 4).permute(0, 2, 3, 1).contiguous()
        batch, height, width, channels = padded.shape
        reach = torch.arange(side, device=cells.device)
        row = (cells // columns * ratio)[..., None] + reach
        column = (cells % columns * ratio)[..., None] + reach
        place = (row[..., :, None] * width + column[..., None, :]).flatten(2)
        place = place + torch.arange(batch, device=cells.device)[:, None, None] * (height * width)
        return padded.view(-1, channels).index_select(0, place.flatten()).view(-1, side * side, channels)

    def _make_position(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(1, L, C)."""
        encoding = position_encoding(self.config.backbone.coarse_dim, rows, columns, self.config.position_slip)
        return encoding.flatten(1).t()[None].contiguous().to(device)
