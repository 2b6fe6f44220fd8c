"""A trained network as teacher: its coarse confidences as soft targets ("Local Feature Matching with Transformers for
Low-End Devices", arXiv 2202.00770).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.cells import point_offset
from loftr_ros.matcher.config import NetworkConfig
from loftr_ros.matcher.interface import ImageFeatures, Matcher

# Confidences below this are as good as none; their logarithm would be.
_LEAST_CONFIDENCE = 1e-8


class ConfidentMatcher(Matcher, Protocol):
    """A matcher that can show its whole confidence matrix."""

    def confidence(self, features0: ImageFeatures, features1: ImageFeatures) -> Tensor:
        """(L, S) fp32, of one pair."""


class Teacher:
    """Any network, whatever its cells are, seen on the cells of the network that learns."""

    def __init__(self, matcher: ConfidentMatcher, student: NetworkConfig) -> None:
        """Take a network that is ready to infer.

        Args:
            matcher: the teacher.
            student: the network that learns.
        """
        self._matcher = matcher
        self._student = student

    @torch.no_grad()
    def confidence(self, image0: Tensor, image1: Tensor) -> Tensor:
        """The teacher's confidence in pairs of the student's cells.

        Args:
            image0, image1: (B, 1, H, W) in [0, 1].

        Returns:
            (B, L, S) float32 in [0, 1].
        """
        with torch.autocast(image0.device.type, enabled=False):
            seen0, seen1 = self.as_seen(image0), self.as_seen(image1)
            pairs = []
            for one, other in zip(seen0, seen1, strict=True):
                features = self._matcher.encode(one[0]), self._matcher.encode(other[0])
                # Tensors made in inference mode must not be kept for a gradient.
                pairs.append(self._matcher.confidence(*features).float().clone())
        return torch.stack(pairs)

    def as_seen(self, image: Tensor) -> Tensor:
        """Images as the teacher sees them: scaled and shifted so that its cells' points fall on the student's.

        Args:
            image: (B, 1, H, W).

        Returns:
            (B, 1, rows * teacher's stride, columns * teacher's stride).
        """
        teacher, student = self._matcher.config, self._student
        stride, own = teacher.coarse_stride, student.coarse_stride
        offset, own_offset = point_offset(teacher, stride), point_offset(student, own)
        if stride == own and offset == own_offset:
            return image
        height, width = image.shape[2:]
        if own > stride:  # what is too fine for the smaller image would come out as patterns that are not there
            image = _blurred(image, own // stride)
        axes = []
        for side in (width, height):
            place = torch.arange(-(-side // own) * stride, device=image.device, dtype=torch.float32)
            place = (place - offset) / stride * own + own_offset
            axes.append((2 * place + 1) / side - 1)
        grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1).expand(len(image), -1, -1, -1)
        return functional.grid_sample(image, grid.to(image.dtype), padding_mode="border", align_corners=False)


def soft_target_loss(log_student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's idea of each cell's partner is from the teacher's.

    A row of the confidence matrix to the power of 1 / temperature, divided by its sum, is a distribution over the
    partners of a cell; the same goes for columns. The loss is the Kullback-Leibler divergence of the student's from the
    teacher's, times the temperature squared so that its gradient keeps its size, averaged over cells by how much
    confidence the teacher has in them at all: a teacher says nothing about cells that it finds no partner for.

    Args:
        log_student: (B, L, S) logarithm of the student's confidence.
        teacher: (B, L, S) confidence.
        temperature: above 1, what comes second and third counts more.
    """
    log_teacher = teacher.clamp_min(_LEAST_CONFIDENCE).log() / temperature
    total = log_student.new_zeros(())
    for dim in (1, 2):
        weight = teacher.sum(dim=dim)
        target = torch.log_softmax(log_teacher, dim=dim)
        learned = torch.log_softmax(log_student / temperature, dim=dim)
        divergence = (target.exp() * (target - learned)).sum(dim=dim)
        total = total + (weight * divergence).sum() / weight.sum().clamp_min(1e-6)
    return total * (temperature**2 / 2)


def _blurred(image: Tensor, factor: int) -> Tensor:
    """A tent as wide as shrinking by `factor` needs; the border's pixels go on outside."""
    tent = 1 - (torch.arange(1 - factor, factor, device=image.device, dtype=image.dtype) / factor).abs()
    tent = tent / tent.sum()
    reach = factor - 1
    padded = functional.pad(image, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, tent.view(1, 1, 1, -1)), tent.view(1, 1, -1, 1))
