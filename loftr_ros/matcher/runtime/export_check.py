"""Check that exported graphs are valid, load, and give the network's results, before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.build import Network
from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.interface import Matcher, Matches
from loftr_ros.matcher.precision import DeviceError
from loftr_ros.matcher.runtime.exported import Exported
from loftr_ros.matcher.runtime.onnx_backend import open_graphs

# By precision: largest relative error of features; least part of matches found by both; and largest distance of their
# points in pixels, for 9 matches in 10.
_LIMITS = {"float32": (1e-3, 0.97, 0.05), "float16": (0.02, 0.9, 0.1)}
_INT8_LIMITS = (0.15, 0.8, 0.5)
# Number of matches that may differ anyway, by chance.
_FEW = 2
# Sides of the patches in the test images, in pixels, and their spacing.
_PATCHES = (4, 9, 21, 50)
_SHIFT = (3, 6)


class DisagreementError(RuntimeError):
    """Graphs that are invalid, or do not compute the network; the message says what is wrong."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of graphs and network on a pair of synthetic images.

    Attributes:
        matches: number found by the network.
        common: number of these also found by the graphs.
        features: largest relative error of encoded features.
        distance: pixels, within which the points of 9 common matches in 10 agree; 0 without any.
    """

    matches: int
    common: int
    features: float
    distance: float


def check_export(network: Network, exported: Exported, encode: Path, match: Path) -> Agreement:
    """Check graphs with the ONNX standard, onnxruntime, and the original network.

    Args:
        network: the original.
        exported: description of the graphs.
        encode, match: the graphs' files.

    Raises:
        DisagreementError: a graph is invalid, is refused by onnxruntime, or has other results.
    """
    import onnx

    for path in (encode, match):
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except Exception as error:  # of onnx's C++, which has several kinds without a common base
            raise DisagreementError(f"onnx's checker refuses {_name(path)}: {_first_line(error)}") from error
    try:
        graphs = open_graphs(exported, encode, match, ("CPUExecutionProvider",))
    except (DeviceError, WeightsError) as error:
        raise DisagreementError(str(error).replace("; export it again", "")) from error
    try:
        return _agreement(network, graphs, exported)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, DisagreementError):
            raise
        raise DisagreementError(f"the graphs do not run: {_first_line(error)}") from error


def made_images(width: int, height: int) -> tuple[Tensor, Tensor]:
    """Two (H, W) uint8 images with detail at several scales; the second is the first shifted by some pixels."""
    generator = torch.Generator().manual_seed(0)
    size = height + _SHIFT[0], width + _SHIFT[1]
    image = torch.zeros(1, 1, *size)
    for side in _PATCHES:
        noise = torch.rand(1, 1, size[0] // side + 2, size[1] // side + 2, generator=generator)
        image += functional.interpolate(noise, size, mode="bicubic", align_corners=False) * side**0.5
    image = (image - image.min()) / (image.max() - image.min()) * 255
    pixels = image[0, 0].to(torch.uint8)
    return pixels[: -_SHIFT[0], : -_SHIFT[1]].contiguous(), pixels[_SHIFT[0] :, _SHIFT[1] :].contiguous()


@torch.inference_mode()
def _agreement(network: Network, graphs: Matcher, exported: Exported) -> Agreement:
    off, share, reach = _INT8_LIMITS if exported.int8 else _LIMITS[exported.precision]
    images = made_images(exported.width, exported.height)
    masks: Sequence[Tensor | None] = (None, _mask(exported))  # an image without and one with pixels to ignore
    encoded = []
    worst = 0.0
    for image, mask in zip(images, masks, strict=True):
        expected = network.complete(network.encode(image, mask))
        found = graphs.encode(image, mask)
        encoded.append((expected, found))
        for name in exported.encoded:
            one, other = getattr(expected, name), getattr(found, name)
            if one is None or one.shape != other.shape:
                continue  # computed later, if needed
            one, other = one.float().cpu(), other.float().cpu()
            apart = float((one - other).norm() / one.norm().clamp_min(1e-9))
            if not apart <= off:
                raise DisagreementError(
                    f"{name} that the graph encodes are {100 * apart:.2g} % off the network's; {100 * off:g} % are "
                    "allowed"
                )
            worst = max(worst, apart)
    wanted, got = (
        matcher.match([one], other)[0]
        for matcher, one, other in (
            (network, encoded[0][0], encoded[1][0]),
            (graphs, encoded[0][1], encoded[1][1]),
        )
    )
    common, apart = _common(wanted, got)
    lost = max(len(wanted), len(got)) - common
    if lost > max(_FEW, (1 - share) * max(len(wanted), len(got))):
        raise DisagreementError(
            f"the graphs find {len(got)} matches where the network finds {len(wanted)}; {common} are the same"
        )
    if apart > reach:
        raise DisagreementError(f"points of the graphs' matches are {apart:.2g} px off the network's")
    return Agreement(len(wanted), common, worst, apart)


def _common(one: Matches, other: Matches) -> tuple[int, float]:
    """Number of matches of the same cells of image 0, and distance in pixels that 9 in 10 of their points keep."""
    here, there = torch.isin(one.cell, other.cell), torch.isin(other.cell, one.cell)
    apart = (one.points1[here].float() - other.points1[there].float()).norm(dim=1)
    return int(here.sum()), float(apart.quantile(0.9)) if len(apart) else 0.0


def _mask(exported: Exported) -> Tensor:
    """(H, W) bool, false in a corner."""
    usable = torch.ones(exported.height, exported.width, dtype=torch.bool)
    usable[: exported.height // 4, : exported.width // 4] = False
    return usable


def _name(path: Path) -> str:
    """The graph's name, independent of its temporary file name."""
    return "encode.onnx" if "encode" in path.name else "match.onnx"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
