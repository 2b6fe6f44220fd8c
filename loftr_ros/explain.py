"""Explains one pair of images: what chosen points attend to, and how they find their matches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from loftr_ros.explanation import AttentionMap, ExplainedPoint, FineWindow, Heat, PairExplanation, View
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame, raw_pixels
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher.explain import (
    AttentionRows,
    ConfidenceRows,
    FineHeat,
    PairObserver,
    attention_weights,
    check_layers,
    confidence_rows,
    default_layers,
    fine_heat,
)
from loftr_ros.matcher.interface import Matches
from loftr_ros.matcher.loftr import LoFTR
from loftr_ros.sources.base import FRAME_ID, EncodedImage, SourceError, SourceFrame

DEFAULT_POINTS = 3


class ExplainError(Exception):
    """What was asked for cannot be shown; the message says why."""


def read_image(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image file as the node would see it, (H, W) uint8 gray, and as it is, gray or BGR.

    Raises:
        SourceError: it is missing or cannot be read.
    """
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise SourceError(f"image {path} cannot be read: {error.strerror}") from error
    ending = path.suffix.lower().lstrip(".")
    image = EncodedImage(data, {"jpg": "jpeg"}.get(ending, ending), str(path))
    frame = SourceFrame(0, 0, FRAME_ID, image)
    return frame.decode(), frame.decode_color()


def explain_pair(
    network: LoFTR,
    files: tuple[Path, Path],
    points: Sequence[tuple[float, float]] = (),
    layers: Sequence[int] = (),
    head: int | None = None,
) -> PairExplanation:
    """Match two images, and look into it at a few points.

    Args:
        network: ready to infer.
        files: image A, whose points are asked about, and image B.
        points: pixels (u, v) of A; without any, those of confident matches all over the image, or, where nothing
            matches, places all over the image.
        layers: numbers of coarse layers; without any, the first and last self and cross layers.
        head: attention head to show; None for the mean over all.

    Raises:
        SourceError: an image cannot be read.
        ExplainError: a point is outside of A, or there is no such layer or head.
    """
    config = network.config
    heads = config.transformer.num_heads
    layers = tuple(layers) or default_layers(config.transformer)
    try:
        check_layers(config.transformer, layers)
    except ValueError as error:
        raise ExplainError(f"{error} (network '{config.name}')") from error
    if head is not None and not 0 <= head < heads:
        known = f"heads 0 to {heads - 1}" if heads > 1 else "head 0 only"
        raise ExplainError(f"head {head} does not exist; network '{config.name}' has {known}")
    images = [read_image(file) for file in files]
    height, width = images[0][0].shape
    for u, v in points:
        if not (-0.5 <= u <= width - 0.5 and -0.5 <= v <= height - 0.5):
            raise ExplainError(f"point {u:g},{v:g} is outside of {files[0].name}, which is {width}x{height}")

    front_end = FrontEnd(network, FrontEndConfig())
    with PairObserver(network, layers) as observer:
        try:
            encoded = [front_end.encode(Frame(gray, 0, FRAME_ID)) for gray, _ in images]
        except ValueError as error:
            raise ExplainError(str(error)) from error
        matches = network.match([encoded[0].features], encoded[1].features)[0]
    views = [_view(network, *given) for given in zip(_names(files), images, encoded, strict=True)]
    points0 = raw_pixels(matches.points0.numpy(), views[0].scale)
    points1 = raw_pixels(matches.points1.numpy(), views[1].scale)
    confidence = matches.confidence.numpy()
    if points:
        cells = [views[0].cell_at(point) for point in points]
    elif len(matches):
        cells = matches.cell[_spread(points0, confidence, DEFAULT_POINTS)].tolist()
    else:
        cells = [views[0].cell_at((width * part, height * part)) for part in (0.25, 0.5, 0.75)]

    assert observer.tokens is not None
    chosen0 = torch.tensor(cells)
    rows = confidence_rows(network, *observer.tokens, chosen0)
    chosen1 = rows.confidence.argmax(dim=1)
    attention = [
        attention_weights(network.loftr_coarse.layers[layer], observer.input_of(layer, image), chosen)  # type: ignore[arg-type]
        for layer in sorted(set(layers))
        for image, chosen in enumerate((chosen0, chosen1))
    ]
    features0, features1 = (frame.features for frame in encoded)
    fine = None
    if network.has_fine_stage:
        fine = fine_heat(network, features0, features1, chosen0, chosen1, *observer.tokens)
    explained = [
        _explained(i, network, (views[0], views[1]), matches, rows, chosen1, fine, attention, head)
        for i in range(len(cells))
    ]
    shown = f"head {head}" if head is not None else f"mean of {heads} heads" if heads > 1 else "one head"
    return PairExplanation(
        (views[0], views[1]), points0, points1, confidence, tuple(explained), _describe(network), shown
    )


def _names(files: tuple[Path, Path]) -> list[str]:
    """What to call the files: with their folders where their own names are the same, as in stereo recordings."""
    if files[0].name != files[1].name:
        return [file.name for file in files]
    return [str(Path(file.absolute().parent.name) / file.name) for file in files]


def _view(network: LoFTR, name: str, image: tuple[NDArray[np.uint8], NDArray[np.uint8]], encoded: EncodedFrame) -> View:
    gray, pixels = image
    # The network's own point of a cell, not the one around which the front end tracks.
    return View(name, pixels, gray, encoded.features.grid, encoded.scale, network.cell_size, network.cell_offset)


def _describe(network: LoFTR) -> str:
    return f"{network.config.name}, {str(network.dtype).removeprefix('torch.')}"


def _explained(
    i: int,
    network: LoFTR,
    views: tuple[View, View],
    matches: Matches,
    rows: ConfidenceRows,
    chosen1: torch.Tensor,
    fine: FineHeat | None,
    attention: Sequence[AttentionRows],
    head: int | None,
) -> ExplainedPoint:
    view0, view1 = views
    cell0, cell1 = int(rows.cells[i]), int(chosen1[i])
    confidence = float(rows.confidence[i, cell1])
    point1, window = view1.point(cell1), None
    if fine is not None:
        point1 = point1 + fine.offset[i].numpy() * view1.scale
        spacing = network.config.backbone.fine_stride * np.asarray(view1.scale)
        std = float(fine.std[i]) * math.sqrt(view1.scale[0] * view1.scale[1])
        window = FineWindow(fine.heat[i].numpy(), spacing, std)
    maps = []
    for entry in attention:
        weights = entry.weights[:, i].mean(dim=0) if head is None else entry.weights[head, i]
        attended = entry.image if entry.kind == "self" else 1 - entry.image
        maps.append(AttentionMap(entry.layer, entry.kind, entry.image, weights.view(views[attended].grid).numpy()))
    return ExplainedPoint(
        cell0=cell0,
        cell1=cell1,
        point0=view0.point(cell0),
        coarse_point1=view1.point(cell1),
        point1=point1,
        confidence=confidence,
        verdict=_verdict(network, matches, cell0, confidence),
        confidence_map=rows.confidence[i].view(view1.grid).numpy(),
        softmax_map=None if rows.row_softmax is None else rows.row_softmax[i].view(view1.grid).numpy(),
        unmatched=None if rows.unmatched is None else float(rows.unmatched[i]),
        fine=window,
        attention=tuple(maps),
    )


def _verdict(network: LoFTR, matches: Matches, cell0: int, confidence: float) -> str:
    if bool((matches.cell == cell0).any()):
        return "match"
    coarse = network.config.coarse
    if confidence <= coarse.threshold:
        return f"no match: below {coarse.threshold:g}"
    # Above the threshold, either rule can be what holds it back.
    return "no match: not mutual" if not coarse.border else "no match: not mutual, or at the border"


def _spread(points: Heat, confidence: Heat, count: int) -> NDArray[np.int64]:
    """The most confident points that are well apart, in the order of their confidence."""
    order = np.argsort(-confidence, kind="stable")
    apart = float(np.linalg.norm(np.ptp(points, axis=0))) / 3
    chosen: list[int] = []
    while len(chosen) < min(count, len(points)):
        for i in order:
            if len(chosen) < count and all(np.linalg.norm(points[i] - points[j]) > apart for j in chosen):
                chosen.append(int(i))
        apart = apart / 2 if apart > 1 else -1.0
    return np.asarray(chosen, np.int64)
