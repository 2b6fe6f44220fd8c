"""Pictures of what the network attends to, and of how a point finds its match (paper, section 4.4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.explanation import AttentionMap, ExplainedPoint, FineWindow, PairExplanation, View
from loftr_ros.visualization import draw_matches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ASKING, _FOUND, _FINE = "#00e5ff", "#7cff4f", "#ff4fd8"
_HEAT = "inferno"
_LETTERS = ("A", "B")
_FAINTEST = 1e-4  # least confidence that has a colour: what decides between candidates spans powers of ten
_ZOOM_CELLS = 6  # cells shown on each side of the one in the middle
_MAX_SIDE = 1200  # of an image in a picture, px
_ATTENTION_CAPTION = (
    "cyan cross: the cell that asks, where it is in this image; green ring: the cell that it is matched with; "
    "clear: less than the mean"
)
_MATCH_CAPTION = "cyan cross: the point's cell; green ring or square: the cell that fits best"
_FINE_CAPTION = "green cross: its point; pink: mean of the window's heat, circle of one standard deviation"
_WIDTH = 13.0  # of a picture, inches


def write_pictures(explanation: PairExplanation, folder: Path) -> list[Path]:
    """Draw everything of a pair.

    Writes `matches.png`, and for each point, numbered from 1, `point_N_attention.png` and `point_N_match.png`.

    Args:
        explanation: of the pair.
        folder: made where it is not there; files in it of these names are written over.

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
    """What a point's cell attends to, one row for each layer; beside it the same of the cell in B that fits it best.

    Weights are shown as multiples of their mean, which is what each cell would have if all had the same.
    """
    rows = len(point.attention) // 2
    figure, panels = _figure([_tallest(explanation.views)] * rows, 2, _ATTENTION_CAPTION)
    figure.suptitle(
        f"{_title(explanation, point, number)}\n"
        f"attention of its cell (left) and of the best cell in B (right), {explanation.heads}"
    )
    for axes, attention in zip(panels, point.attention, strict=True):
        asking, attended = _LETTERS[attention.image], _LETTERS[attention.attended_image]
        view = explanation.views[attention.attended_image]
        _show(axes, view)
        _heat_of_attention(axes, view, attention)
        _mark(axes, explanation, point, attention)
        axes.set_title(f"layer {attention.layer}, {attention.kind}: cell of {asking} looks at {attended}", fontsize=10)
    return figure


def plot_match(explanation: PairExplanation, point: ExplainedPoint, number: int) -> Figure:
    """How a point finds its match: coarse heat maps over B, then nearer, then the fine stage's window."""
    view0, view1 = explanation.views
    caption = _MATCH_CAPTION if point.fine is None else f"{_MATCH_CAPTION}; {_FINE_CAPTION}"
    figure, panels = _figure([_tallest(explanation.views), 1.0], 3, caption)
    figure.suptitle(_title(explanation, point, number))
    whole_a, softmax, whole_b, near_a, near_b, window = panels

    _show(whole_a, view0)
    _cross(whole_a, point.point0, _ASKING)
    whole_a.set_title(f"A: point {number}", fontsize=10)
    _show(near_a, view0)
    _outline(near_a, view0, point.point0)
    _cross(near_a, point.point0, _ASKING)
    _zoom(near_a, view0, point.point0)
    near_a.set_title("A, nearer: the point's cell", fontsize=10)

    name = "dual-softmax"
    if point.softmax_map is None:
        name = "transport plan"
        softmax.axis("off")
        text = f"optimal transport\n\nin the dustbin: {point.unmatched:.3f}\nin the best cell: {point.confidence:.3f}"
        softmax.text(0.5, 0.5, text, ha="center", va="center", transform=softmax.transAxes)
    else:
        _show(softmax, view1)
        _heat_of_confidence(softmax, view1, point.softmax_map, "share of the row")
        softmax.set_title("B: softmax over the row", fontsize=10)
    for axes, near in ((whole_b, False), (near_b, True)):
        _show(axes, view1)
        _heat_of_confidence(axes, view1, point.confidence_map, "confidence")
        if near:
            _outline(axes, view1, point.coarse_point1)
            _zoom(axes, view1, point.coarse_point1)
        else:
            _ring(axes, point.coarse_point1, _FOUND)
        axes.set_title(f"B{', nearer' if near else ''}: {name}, best cell {point.confidence:.3g}", fontsize=10)
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
    found = f"{point.verdict}, confidence {point.confidence:.3g}"
    return (
        f"A {view0.name}, B {view1.name}: {explanation.count} ({explanation.network})\n"
        f"point {number} at ({u:.0f}, {v:.0f}): {found}"
    )


def _figure(shares: list[float], columns: int, caption: str) -> tuple[Figure, list[Axes]]:
    """An empty figure of panels with a caption below; a row's share is its height over its panels' width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
    from matplotlib.figure import Figure

    heights = [min(share, 1.6) * (_WIDTH / columns - 0.9) + 0.45 for share in shares]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.supxlabel(caption, fontsize=9)
    grid = figure.add_gridspec(len(shares), columns, height_ratios=heights)
    return figure, [figure.add_subplot(grid[row, column]) for row in range(len(shares)) for column in range(columns)]


def _tallest(views: tuple[View, ...]) -> float:
    """Height over width of the tallest of images."""
    return float(max(view.gray.shape[0] / view.gray.shape[1] for view in views))


def _show(axes: Axes, view: View) -> None:
    """The image in gray, so that every colour is heat, on axes in its pixels."""
    height, width = view.gray.shape
    shrink = min(1.0, _MAX_SIDE / max(height, width))
    size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    gray = cv2.resize(view.gray, size, interpolation=cv2.INTER_AREA) if shrink < 1 else view.gray
    axes.imshow(gray, cmap="gray", vmin=0, vmax=255, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.tick_params(labelsize=7)


def _extent(view: View) -> tuple[float, float, float, float]:
    """Where a map over the grid is on the image: each cell around its point."""
    rows, columns = view.grid
    first, last = view.point(0), view.point(rows * columns - 1)
    half = view.cell_sides / 2
    return first[0] - half[0], last[0] + half[0], last[1] + half[1], first[1] - half[1]


def _overlay(axes: Axes, heat: NDArray[Any], norm: Any, extent: tuple[float, float, float, float], label: str) -> None:
    """Heat over the image, the clearer the less of it there is, with its colour bar."""
    from matplotlib.cm import ScalarMappable

    shares = np.clip(np.asarray(norm(heat).filled(0.0), np.float64), 0, 1)
    limits = axes.axis()
    axes.imshow(heat, cmap=_HEAT, norm=norm, alpha=0.9 * np.sqrt(shares), extent=extent, interpolation="nearest")
    axes.axis(limits)
    # Of the map without its transparency, and as high as the image.
    bar = axes.figure.colorbar(ScalarMappable(norm, _HEAT), cax=axes.inset_axes((1.02, 0.0, 0.035, 1.0)))
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _heat_of_attention(axes: Axes, view: View, attention: AttentionMap) -> None:
    from matplotlib.colors import Normalize

    relative = attention.weights * attention.weights.size
    # Most of linear attention is spread evenly: what is below the mean stays clear. A few cells far above all others
    # would leave those in the dark.
    norm = Normalize(1.0, max(float(np.percentile(relative, 99.8)), 1.01))
    _overlay(axes, np.ma.asarray(relative), norm, _extent(view), f"times the mean (highest {relative.max():.3g})")


def _heat_of_confidence(axes: Axes, view: View, confidence: NDArray[np.float32], label: str) -> None:
    from matplotlib.colors import LogNorm

    norm = LogNorm(_FAINTEST, 1.0)
    _overlay(axes, np.ma.masked_less(confidence, _FAINTEST), norm, _extent(view), label)


def _fine_window(axes: Axes, point: ExplainedPoint, fine: FineWindow) -> None:
    from matplotlib.colors import Normalize
    from matplotlib.patches import Circle

    side = fine.heat.shape[0]
    half = side * fine.spacing / 2
    centre = point.coarse_point1
    extent = (centre[0] - half[0], centre[0] + half[0], centre[1] + half[1], centre[1] - half[1])
    norm = Normalize(0.0, float(fine.heat.max()))
    _overlay(axes, np.ma.asarray(fine.heat), norm, extent, "share of the window")
    axes.add_patch(Circle((point.point1[0], point.point1[1]), fine.std, fill=False, color=_FINE, linewidth=2))
    _cross(axes, point.point1, _FINE)
    _cross(axes, centre, _FOUND)
    margin = 1.15 * half
    axes.set_xlim(centre[0] - margin[0], centre[0] + margin[0])
    axes.set_ylim(centre[1] + margin[1], centre[1] - margin[1])
    moved = point.point1 - centre
    axes.set_title(
        f"B, fine window: moved by ({moved[0]:+.2f}, {moved[1]:+.2f}) px, std {fine.std:.2f} px", fontsize=10
    )


def _mark(axes: Axes, explanation: PairExplanation, point: ExplainedPoint, attention: AttentionMap) -> None:
    """The asking cell by a cross where it is in this image, and its partner by a ring where that is."""
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


def _outline(axes: Axes, view: View, centre: NDArray[np.float64]) -> None:
    """The outline of a cell."""
    from matplotlib.patches import Rectangle

    sides = view.cell_sides
    corner = centre - sides / 2
    axes.add_patch(Rectangle((corner[0], corner[1]), sides[0], sides[1], fill=False, color=_FOUND, linewidth=1.5))


def _zoom(axes: Axes, view: View, centre: NDArray[np.float64]) -> None:
    """The cells around one, as many on each side as there are."""
    height, width = view.gray.shape
    reach = _ZOOM_CELLS * view.cell_sides
    size = np.array([width, height]) - 0.5
    low = np.maximum(np.minimum(centre - reach, size - 2 * reach), -0.5)
    high = np.minimum(low + 2 * reach, size)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])
