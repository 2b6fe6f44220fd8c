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

Grid = tuple[int, int]

# Confidences below this are treated as this, because of their logarithm.
_LEAST_CONFIDENCE = 1e-8


class ConfidentMatcher(Matcher, Protocol):
    """A matcher that can show its whole confidence matrix."""

    def confidence(self, features0: ImageFeatures, features1: ImageFeatures) -> Tensor:
        """(L, S) fp32, of one pair."""


class Teacher:
    """Adapts any network as teacher to the cells of the student.

    The student's unit of coarse matching is called a cell here, even if it is a region of several of its cells. A
    teacher with smaller cells gets the image unchanged, and its confidences are summed over the cells in each of the
    student's; one with larger cells gets the image enlarged.
    """

    def __init__(self, matcher: ConfidentMatcher, student: NetworkConfig) -> None:
        """Use a network that is ready for inference.

        Args:
            matcher: the teacher.
            student: the network in training.
        """
        self._matcher = matcher
        self._student = student
        own, stride = student.coarse_stride, matcher.config.coarse_stride
        # All strides are powers of two, so one divides the other.
        self._cells = max(own // stride, 1)

    @torch.no_grad()
    def confidence(self, image0: Tensor, image1: Tensor) -> Tensor:
        """The teacher's confidence in pairs of the student's cells.

        Args:
            image0, image1: (B, 1, H, W) in [0, 1].

        Returns:
            (B, L, S) float32 in [0, 1].
        """
        own = self._student.coarse_stride
        grid0, grid1 = ((-(-image.shape[2] // own), -(-image.shape[3] // own)) for image in (image0, image1))
        with torch.autocast(image0.device.type, enabled=False):
            seen0, seen1 = self.shifted_view(image0), self.shifted_view(image1)
            pairs = []
            for one, other in zip(seen0, seen1, strict=True):
                features = self._matcher.encode(one[0]), self._matcher.encode(other[0])
                confidence = self._matcher.confidence(*features).float()
                # Tensors made in inference mode must not be kept for a gradient.
                pairs.append(pooled(confidence, grid0, grid1, self._cells).clone())
        return torch.stack(pairs)

    def shifted_view(self, image: Tensor) -> Tensor:
        """Shift and resize images for the teacher, so that its cells' points are at the student's, or evenly around
        them.

        Args:
            image: (B, 1, H, W).

        Returns:
            (B, 1, rows * n * teacher's stride, columns * n * teacher's stride), with the student's rows and columns,
            and n of the teacher's cells along each side of one of the student's.
        """
        teacher, student = self._matcher.config, self._student
        stride, own = teacher.coarse_stride, student.coarse_stride
        step = own / self._cells  # between the teacher's points, in pixels of the image
        offset = point_offset(teacher, stride)
        first = point_offset(student, own) - (own - step) / 2
        height, width = image.shape[2:]
        rows, columns = -(-height // own) * self._cells, -(-width // own) * self._cells
        if step == stride and first == offset and (height, width) == (rows * stride, columns * stride):
            return image
        axes = []
        for side, count in ((width, columns), (height, rows)):
            place = torch.arange(count * stride, device=image.device, dtype=torch.float32)
            place = (place - offset) / stride * step + first
            axes.append((2 * place + 1) / side - 1)
        grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1).expand(len(image), -1, -1, -1)
        return functional.grid_sample(image, grid.to(image.dtype), padding_mode="border", align_corners=False)


def pooled(confidence: Tensor, grid0: Grid, grid1: Grid, cells: int) -> Tensor:
    """Convert confidences of pairs of small cells to those of the large cells that contain them.

    Confidences of a small cell with the small cells of a large one are summed, and averaged over the small cells of the
    other large one: if all of these match one to one within a pair of large cells, that pair has a confidence of 1.

    Args:
        confidence: (cells² L, cells² S), of small cells.
        grid0, grid1: (rows, columns) of large cells, L and S of them.
        cells: small ones along the side of a large one.

    Returns:
        (L, S).
    """
    if cells == 1:
        return confidence
    split = confidence.view(grid0[0], cells, grid0[1], cells, grid1[0], cells, grid1[1], cells)
    summed = split.sum(dim=(1, 3, 5, 7)) / cells**2
    return summed.reshape(grid0[0] * grid0[1], grid1[0] * grid1[1])


def soft_target_loss(log_student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's distribution over each cell's partners from the teacher's.

    A row of the confidence matrix to the power of 1 / temperature, divided by its sum, is a distribution over the
    partners of a cell; the same holds for columns. The loss is the Kullback-Leibler divergence of the student's from
    the teacher's, times the temperature squared to preserve the gradient's size, averaged over cells with the teacher's
    total confidence as weight: cells without a partner for the teacher do not count.

    Args:
        log_student: (B, L, S) logarithm of the student's confidence.
        teacher: (B, L, S) confidence.
        temperature: above 1, less likely partners count more.
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
