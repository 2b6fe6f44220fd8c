"""Explains one pair of images: what chosen points attend to, and how they find their matches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame, raw_pixels
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.efficient.network import EfficientLoFTR
from loftr_ros.matcher.factory import backend_of
from loftr_ros.matcher.interface import Matcher, Matches
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.runtime.gpu import plain
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.recordings.still import still
from loftr_ros.tools.explain.compact import InsideCompact
from loftr_ros.tools.explain.efficient import InsideEfficient
from loftr_ros.tools.explain.explanation import (
    AttentionMap,
    CellChoiceMap,
    CoarseMaps,
    ExplainedPoint,
    FineWindow,
    Heat,
    PairExplanation,
    PairImage,
)
from loftr_ros.tools.explain.loftr import InsideLoFTR
from loftr_ros.tools.explain.observer import PairObserver
from loftr_ros.tools.explain.views import (
    AttentionRows,
    CellChoice,
    ConfidenceRows,
    FineHeat,
    Inside,
    Lattice,
    check_layers,
    confidence_rows,
    default_layers,
)

DEFAULT_POINTS = 3


class ExplainError(Exception):
    """A requested point, layer or head cannot be shown; the message says why."""


def read_image(path: Path, reader: FrameReader | None = None) -> tuple[Frame, NDArray[np.uint8]]:
    """An image file as the node sees it, and to display: (H, W, 3) uint8 BGR or (H, W) uint8 gray.

    Args:
        path: of the file.
        reader: makes frames with the node's parameters; None for their defaults.

    Raises:
        SourceError: the file is missing or cannot be read.
    """
    frame, reader = still(path), reader or FrameReader()
    read = reader.read(frame)
    return read, reader.picture(frame, read)


def explain_pair(
    network: Matcher,
    files: tuple[Path, Path],
    points: Sequence[tuple[float, float]] = (),
    layers: Sequence[int] = (),
    head: int | None = None,
    reader: FrameReader | None = None,
    config: FrontEndConfig | None = None,
) -> PairExplanation:
    """Match two images, and explain a few points.

    Args:
        network: `LoFTR`, `Compact` or `EfficientLoFTR`, ready to infer.
        files: image A with the points, and image B.
        points: pixels (u, v) of A; if empty, confident matches spread over the image, or, if nothing matches, places
            spread over the image.
        layers: numbers of coarse layers; if empty, the first and last self and cross layers.
        head: attention head to show; None for the mean over all.
        reader: makes frames with the node's parameters; None for their defaults.
        config: settings of the front end; None for the defaults.

    Raises:
        SourceError: an image cannot be read.
        ExplainError: a point is outside A, a layer or head does not exist, or the network does not run in torch.
    """
    network = plain(network)
    inside, network_config = look_into(network), network.config
    heads = network_config.transformer.num_heads
    layers = tuple(layers) or default_layers(network_config.transformer)
    try:
        check_layers(network_config.transformer, layers)
    except ValueError as error:
        raise ExplainError(f"{error} (network '{network_config.name}')") from error
    if head is not None and not 0 <= head < heads:
        known = f"heads 0 to {heads - 1}" if heads > 1 else "head 0 only"
        raise ExplainError(f"head {head} does not exist; network '{network_config.name}' has {known}")
    images = [read_image(file, reader) for file in files]
    height, width = images[0][0].image.shape
    for u, v in points:
        if not (-0.5 <= u <= width - 0.5 and -0.5 <= v <= height - 0.5):
            raise ExplainError(f"point {u:g},{v:g} is outside {files[0].name}, which is {width}x{height}")

    pairs = PairMatcher(network, config)
    with PairObserver(inside, layers) as observer:
        try:
            encoded = [pairs.encode(frame) for frame, _ in images]
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

    features, tokens = (encoded[0].features, encoded[1].features), observer.tokens
    cells0 = torch.tensor(cells)
    rows = confidence_rows(inside.network, *tokens, inside.tokens_of(cells0, features[0]))
    choice = inside.choose(rows, cells0, features, tokens)
    attention = [
        inside.attention(observer.input_of(layer, image), chosen)
        for layer in sorted(set(layers))
        for image, chosen in enumerate((rows.tokens, rows.best))
    ]
    fine = inside.fine_heat(cells0, choice.cells, features, tokens) if network.has_fine_stage else None
    token_places, key_places = inside.token_places(features[1]), [inside.key_places(image) for image in features]
    explained = []
    for i, cell0 in enumerate(cells):
        cell1, sure = int(choice.cells[i]), float(choice.confidence[i])
        window = None if fine is None else _fine_window(i, cell1, views[1], fine)
        moved = 0.0 if fine is None else fine.offset[i].numpy() * views[1].scale
        point = ExplainedPoint(
            cell0=cell0,
            cell1=cell1,
            point0=views[0].point(cell0),
            coarse_point1=views[1].point(cell1),
            point1=views[1].point(cell1) + moved,
            confidence=sure,
            verdict=_verdict(network, matches, cell0, sure),
            coarse=_coarse_maps(i, views[1], rows, token_places),
            choice=_choice_map(i, views[1], choice),
            fine=window,
            attention=tuple(_attention_map(i, views, entry, key_places, head) for entry in attention),
        )
        explained.append(point)
    shown = f"head {head}" if head is not None else f"mean of {heads} heads" if heads > 1 else "one head"
    return PairExplanation(
        (views[0], views[1]), points0, points1, confidence, tuple(explained), _describe(network), shown, inside.unit
    )


def look_into(network: Matcher) -> Inside:
    """The class that looks into a network.

    Raises:
        ExplainError: there is no such class.
    """
    backend = backend_of(network)
    if backend == "torch" and isinstance(network, LoFTR):
        return InsideLoFTR(network)
    if backend == "torch" and isinstance(network, Compact):
        return InsideCompact(network)
    if backend == "torch" and isinstance(network, EfficientLoFTR):
        return InsideEfficient(network)
    raise ExplainError(f"network '{network.config.name}' is run by {backend}; only networks in torch can be explained")


def _names(files: tuple[Path, Path]) -> list[str]:
    """Names of the files to show; with their folders if the names are equal, as in stereo recordings."""
    if files[0].name != files[1].name:
        return [file.name for file in files]
    return [str(Path(file.absolute().parent.name) / file.name) for file in files]


def _view(network: Matcher, name: str, image: tuple[Frame, NDArray[np.uint8]], encoded: EncodedFrame) -> PairImage:
    frame, pixels = image
    # The network's own point of a cell, not the front end's tracking point.
    return PairImage(
        name, pixels, frame.image, encoded.features.grid, encoded.scale, network.cell_size, network.cell_offset
    )


def _describe(network: Matcher) -> str:
    return f"{network.config.name}, {str(network.dtype).removeprefix('torch.')}"


def _coarse_maps(i: int, view: PairImage, rows: ConfidenceRows, places: Lattice) -> CoarseMaps:
    """Of point i, over image B."""
    row, column = divmod(int(rows.best[i]), places.grid[1])
    best = np.array(places.first) + places.side * np.array([column, row], np.float64)
    return CoarseMaps(
        view.heat_map(rows.confidence[i].numpy(), places),
        None if rows.row_softmax is None else view.heat_map(rows.row_softmax[i].numpy(), places),
        None if rows.unmatched is None else float(rows.unmatched[i]),
        view.to_raw(best),
    )


def _choice_map(i: int, view: PairImage, choice: CellChoice) -> CellChoiceMap | None:
    if choice.shares is None or choice.none is None:
        return None
    return CellChoiceMap(view.heat_map(choice.shares[i].numpy(), choice.places[i]), float(choice.none[i]))


def _fine_window(i: int, cell: int, view: PairImage, fine: FineHeat) -> FineWindow:
    """Its middle is the cell's point."""
    row, column = divmod(cell, view.grid[1])
    reach = (fine.heat.shape[1] - 1) / 2 * fine.spacing
    u, v = (number * view.cell_size + view.cell_offset - reach for number in (column, row))
    places = Lattice((fine.heat.shape[1], fine.heat.shape[2]), fine.spacing, (u, v))
    std = float(fine.std[i]) * math.sqrt(view.scale[0] * view.scale[1])
    return FineWindow(view.heat_map(fine.heat[i].numpy(), places), std)


def _attention_map(
    i: int, views: Sequence[PairImage], rows: AttentionRows, places: Sequence[Lattice], head: int | None
) -> AttentionMap:
    weights = rows.weights[:, i].mean(dim=0) if head is None else rows.weights[head, i]
    attended = rows.image if rows.kind == "self" else 1 - rows.image
    return AttentionMap(rows.layer, rows.kind, rows.image, views[attended].heat_map(weights.numpy(), places[attended]))


def _verdict(network: Matcher, matches: Matches, cell0: int, confidence: float) -> str:
    if bool((matches.cell == cell0).any()):
        return "match"
    coarse = network.config.coarse
    if confidence <= coarse.threshold:
        return f"no match: below {coarse.threshold:g}"
    # Above the threshold, either rule may be the reason.
    return "no match: not mutual" if not coarse.border else "no match: not mutual, or at the border"


def _spread(points: Heat, confidence: Heat, count: int) -> NDArray[np.int64]:
    """The most confident points with some distance between them, most confident first."""
    order = np.argsort(-confidence, kind="stable")
    apart = float(np.linalg.norm(np.ptp(points, axis=0))) / 3
    chosen: list[int] = []
    while len(chosen) < min(count, len(points)):
        for i in order:
            if len(chosen) < count and all(np.linalg.norm(points[i] - points[j]) > apart for j in chosen):
                chosen.append(int(i))
        apart = apart / 2 if apart > 1 else -1.0
    return np.asarray(chosen, np.int64)
