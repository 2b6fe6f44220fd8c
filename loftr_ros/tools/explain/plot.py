"""Draws what the network attends to, and how a point finds its match (paper, section 4.4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.drawing import draw_matches
from loftr_ros.tools.explain.explanation import (
    AttentionMap,
    ExplainedPoint,
    FineWindow,
    HeatMap,
    PairExplanation,
    PairImage,
)
from loftr_ros.wording import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ASKING, _FOUND, _FINE, _REGION = "#00e5ff", "#7cff4f", "#ff4fd8", "white"
_HEAT = "inferno"
_LETTERS = ("A", "B")
_FAINTEST = 1e-4  # smallest confidence with a colour: candidates differ by powers of ten
_ZOOM_CELLS = 6  # cells shown on each side of the central one
_MAX_SIDE = 1200  # of an image in a picture, px
_ATTENTION_CAPTION = (
    "cyan cross: the attending cell, if it is in this image; green ring: its match in the other image; "
    "clear: below the mean"
)
_MATCH_CAPTION = "cyan cross: the point's cell; green ring or square: its best cell"
_REGION_CAPTION = "white square: the best region"
_FINE_CAPTION = "green cross: its point; pink: the match, circle of one standard deviation"
_WIDTH = 13.0  # of a picture, inches


def write_pictures(explanation: PairExplanation, folder: Path) -> list[Path]:
    """Draw everything of a pair.

    Writes `matches.png`, and for each point, numbered from 1, `point_N_attention.png` and `point_N_match.png`.

    Args:
        explanation: of the pair.
        folder: created if necessary; files of these names in it are overwritten.

    Returns:
        The files.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "matches.png"]
    _, encoded = cv2.imencode(".png", draw_pair(explanation))
    files[0].write_bytes(encoded.tobytes())
    for number, point in enumerate(explanation.points, start=1):
        for what, figure in (
            ("attention", plot_attention(explanation, point, number)),
            ("match", plot_match(explanation, point, number)),
        ):
            files.append(folder / f"point_{number}_{what}.png")
            figure.savefig(files[-1])
    return files


def draw_pair(explanation: PairExplanation) -> NDArray[np.uint8]:
    """Both images with the matches between them, (H, W, 3) uint8 BGR."""
    view0, view1 = explanation.views
    text = f"{view0.name} - {view1.name}: {explanation.count} ({explanation.network}), blue to yellow by confidence"
    return draw_matches(
        view0.pixels, view1.pixels, explanation.points0, explanation.points1, explanation.confidence, text=text
    )


def plot_attention(explanation: PairExplanation, point: ExplainedPoint, number: int) -> Figure:
    """Attention of a point's cell, one row for each layer; beside it that of its best cell in B.

    Weights are shown as multiples of their mean, the weight of each cell in uniform attention.
    """
    rows = len(point.attention) // 2
    figure, panels = _figure([_tallest(explanation.views)] * rows, 2, _ATTENTION_CAPTION)
    unit = explanation.unit
    figure.suptitle(
        f"{_title(explanation, point, number)}\n"
        f"attention of its {unit} (left) and of the best {unit} in B (right), {explanation.heads}"
    )
    for axes, attention in zip(panels, point.attention, strict=True):
        asking, attended = _LETTERS[attention.image], _LETTERS[attention.attended_image]
        view = explanation.views[attention.attended_image]
        _show(axes, view)
        _heat_of_attention(axes, attention.heat)
        _mark(axes, explanation, point, attention)
        axes.set_title(
            f"layer {attention.layer}, {attention.kind}: {unit} of {asking} looks at {attended}", fontsize=10
        )
    return figure


def plot_match(explanation: PairExplanation, point: ExplainedPoint, number: int) -> Figure:
    """How a point finds its match: coarse heat maps over B, a close-up, and the fine stage's window."""
    view0, view1 = explanation.views
    captions = [_MATCH_CAPTION]
    if point.choice is not None:
        captions.append(_REGION_CAPTION)
    if point.fine is not None:
        captions.append(_FINE_CAPTION)
    figure, panels = _figure([_tallest(explanation.views), 1.0], 3, "; ".join(captions))
    figure.suptitle(_title(explanation, point, number))
    whole_a, softmax, whole_b, near_a, near_b, window = panels

    _show(whole_a, view0)
    _cross(whole_a, point.point0, _ASKING)
    whole_a.set_title(f"A: point {number}", fontsize=10)
    _show(near_a, view0)
    _outline(near_a, point.point0, view0.cell_sides, _FOUND)
    _cross(near_a, point.point0, _ASKING)
    _zoom(near_a, view0, point.point0)
    near_a.set_title("A, close-up: the point's cell", fontsize=10)

    name, most = "dual-softmax", float(point.coarse.confidence.values.max())
    if point.coarse.row_softmax is None:
        softmax.axis("off")
        name, text = "score", f"mutual best scores\n\nof the best cell, as a confidence: {most:.3f}"
        if point.coarse.unmatched is not None:
            name, unmatched = "transport plan", point.coarse.unmatched
            text = f"optimal transport\n\nin the dustbin: {unmatched:.3f}\nin the best cell: {most:.3f}"
        softmax.text(0.5, 0.5, text, ha="center", va="center", transform=softmax.transAxes)
    else:
        _show(softmax, view1)
        _heat_of_confidence(softmax, point.coarse.row_softmax, "share of the row")
        softmax.set_title("B: softmax over the row", fontsize=10)
    coarse = f"{name}, best {explanation.unit} {plain(float(most))}"
    _show(whole_b, view1)
    _heat_of_confidence(whole_b, point.coarse.confidence, "confidence")
    _ring(whole_b, point.coarse_point1, _FOUND)
    whole_b.set_title(f"B: {coarse}", fontsize=10)
    _show(near_b, view1)
    if point.choice is None:
        _heat_of_confidence(near_b, point.coarse.confidence, "confidence")
        near_b.set_title(f"B, nearer: {coarse}", fontsize=10)
    else:
        shares, none = point.choice.shares, point.choice.none
        _heat_of_confidence(near_b, shares, "share of the cells")
        _outline(near_b, point.coarse.best, point.coarse.confidence.sides, _REGION)
        near_b.set_title(
            f"B, close-up: best of its cells {plain(float(shares.values.max()))}, none {plain(float(none))}",
            fontsize=10,
        )
    _outline(near_b, point.coarse_point1, view1.cell_sides, _FOUND)
    _zoom(near_b, view1, point.coarse_point1)
    if point.fine is None:
        window.axis("off")
        window.text(0.5, 0.5, "this network has no fine stage", ha="center", va="center", transform=window.transAxes)
    else:
        _show(window, view1)
        _fine_window(window, point, point.fine)
    return figure


def _title(explanation: PairExplanation, point: ExplainedPoint, number: int) -> str:
    view0, view1 = explanation.views
    u, v = point.point0
    found = f"{point.verdict}, confidence {plain(point.confidence)}"
    return (
        f"A {view0.name}, B {view1.name}: {explanation.count} ({explanation.network})\n"
        f"point {number} at ({u:.0f}, {v:.0f}): {found}"
    )


def _figure(shares: list[float], columns: int, caption: str) -> tuple[Figure, list[Axes]]:
    """An empty figure of panels with a caption below; a row's height follows its panels' ratio of height to width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
    from matplotlib.figure import Figure

    heights = [min(share, 1.6) * (_WIDTH / columns - 0.9) + 0.45 for share in shares]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.supxlabel(caption, fontsize=9)
    grid = figure.add_gridspec(len(shares), columns, height_ratios=heights)
    return figure, [figure.add_subplot(grid[row, column]) for row in range(len(shares)) for column in range(columns)]


def _tallest(views: tuple[PairImage, ...]) -> float:
    """Largest ratio of height to width of images."""
    return float(max(view.gray.shape[0] / view.gray.shape[1] for view in views))


def _show(axes: Axes, view: PairImage) -> None:
    """Draw the image in gray, so that all colour is heat, on axes in its pixels."""
    height, width = view.gray.shape
    shrink = min(1.0, _MAX_SIDE / max(height, width))
    size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    gray = cv2.resize(view.gray, size, interpolation=cv2.INTER_AREA) if shrink < 1 else view.gray
    axes.imshow(gray, cmap="gray", vmin=0, vmax=255, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.tick_params(labelsize=7)


def _overlay(axes: Axes, heat: HeatMap, norm: Any, label: str, faintest: float = 0.0) -> None:
    """Draw heat over the image with a colour bar; less heat is more transparent, and below `faintest` it is clear."""
    from matplotlib.cm import ScalarMappable

    values = np.ma.masked_less(heat.values, faintest)
    shares = np.clip(np.asarray(norm(values).filled(0.0), np.float64), 0, 1)
    limits = axes.axis()
    axes.imshow(values, cmap=_HEAT, norm=norm, alpha=0.9 * np.sqrt(shares), extent=heat.extent, interpolation="nearest")
    axes.axis(limits)
    # The colour bar has no transparency, and the image's height.
    bar = axes.figure.colorbar(ScalarMappable(norm, _HEAT), cax=axes.inset_axes((1.02, 0.0, 0.035, 1.0)))
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _heat_of_attention(axes: Axes, heat: HeatMap) -> None:
    from matplotlib.colors import Normalize

    relative = heat.values * heat.values.size
    # Most of linear attention is uniform, so weights below the mean stay clear. The scale ends at a percentile, because
    # a few cells far above all others would darken the rest.
    norm = Normalize(1.0, max(float(np.percentile(relative, 99.8)), 1.01))
    _overlay(axes, replace(heat, values=relative), norm, f"times the mean (highest {plain(float(relative.max()))})")


def _heat_of_confidence(axes: Axes, heat: HeatMap, label: str) -> None:
    from matplotlib.colors import LogNorm

    _overlay(axes, heat, LogNorm(_FAINTEST, 1.0), label, _FAINTEST)


def _fine_window(axes: Axes, point: ExplainedPoint, fine: FineWindow) -> None:
    from matplotlib.colors import Normalize
    from matplotlib.patches import Circle

    _overlay(axes, fine.heat, Normalize(0.0, float(fine.heat.values.max())), "share of the window")
    axes.add_patch(Circle((point.point1[0], point.point1[1]), fine.std, fill=False, color=_FINE, linewidth=2))
    centre = point.coarse_point1
    _cross(axes, point.point1, _FINE)
    _cross(axes, centre, _FOUND)
    left, right, bottom, top = fine.heat.extent
    rim = 0.075 * (right - left), 0.075 * (bottom - top)
    axes.set_xlim(left - rim[0], right + rim[0])
    axes.set_ylim(bottom + rim[1], top - rim[1])
    moved = point.point1 - centre
    axes.set_title(
        f"B, fine window: moved by ({moved[0]:+.2f}, {moved[1]:+.2f}) px, std {fine.std:.2f} px", fontsize=10
    )


def _mark(axes: Axes, explanation: PairExplanation, point: ExplainedPoint, attention: AttentionMap) -> None:
    """Mark the attending cell by a cross if it is in this image, else its match by a ring."""
    places = (point.point0, point.coarse_point1)
    if attention.kind == "self":
        _cross(axes, places[attention.image], _ASKING)
    else:
        _ring(axes, places[attention.attended_image], _FOUND)


def _cross(axes: Axes, place: NDArray[np.float64], color: str) -> None:
    for width, shade in ((3.5, "black"), (1.8, color)):
        axes.plot(place[0], place[1], "+", color=shade, markersize=12, markeredgewidth=width)


def _ring(axes: Axes, place: NDArray[np.float64], color: str) -> None:
    for width, shade in ((3.5, "black"), (1.5, color)):
        axes.plot(
            place[0], place[1], "o", markerfacecolor="none", markeredgecolor=shade, markersize=16, markeredgewidth=width
        )


def _outline(axes: Axes, centre: NDArray[np.float64], sides: NDArray[np.float64], color: str) -> None:
    """Draw the outline of a cell or region."""
    from matplotlib.patches import Rectangle

    corner = centre - sides / 2
    axes.add_patch(Rectangle((corner[0], corner[1]), sides[0], sides[1], fill=False, color=color, linewidth=1.5))


def _zoom(axes: Axes, view: PairImage, centre: NDArray[np.float64]) -> None:
    """Show the cells around one, within the image."""
    height, width = view.gray.shape
    reach = _ZOOM_CELLS * view.cell_sides
    size = np.array([width, height]) - 0.5
    low = np.maximum(np.minimum(centre - reach, size - 2 * reach), -0.5)
    high = np.minimum(low + 2 * reach, size)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])
