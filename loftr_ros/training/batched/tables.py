"""Views to draw as tables of numbers: the host's half of making pairs. Imports no torch.

A scene's faces and round objects (`worlds.rasterizer.Surfaces`) become the coefficients of each view. All views of a
batch have one size and as many rows as the largest needs; unused rows are 0 and draw nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from loftr_ros.training.assets import StoredLevels
from loftr_ros.worlds.rasterizer import NEAR, Round, Surfaces
from loftr_ros.worlds.texturing import FAST, Image, Material

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Columns of the table of looks.
REPEAT_S, REPEAT_T, SHIFT_S, SHIFT_T, GAIN, BIAS, LEVEL, SLOPE, TEXTURE, MIRRORED, LIGHT = range(11)
COLUMNS = 11
# Mip levels are half the logarithm of the texels per pixel: |det| / inverse depth³.
_SLOPE = 1.5
_MARGIN = 1.0  # px around a face's corners


@dataclass
class TextureTable:
    """The textures of a batch: those of the asset bank by their place in it, others with their pixels.

    Attributes:
        bank_size: number of the bank's pixels; larger addresses are those of `pixels`.
        levels: of each texture, address, width and height of its mip levels.
    """

    bank_size: int
    levels: list[list[tuple[int, int, int]]] = field(default_factory=list)
    _numbers: dict[tuple[str, int], int] = field(default_factory=dict)
    _kept: list[Sequence[Image]] = field(default_factory=list)  # so that no other array gets the same id
    _pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    _end: int = 0

    def number(self, levels: Sequence[Image]) -> int:
        """The number of a texture, added if it is new."""
        stored = isinstance(levels, StoredLevels)
        key = ("bank", levels.offset) if isinstance(levels, StoredLevels) else ("own", id(levels[0]))
        number = self._numbers.get(key)
        if number is not None:
            return number
        rows = []
        address = levels.offset if isinstance(levels, StoredLevels) else self.bank_size + self._end
        for level in levels:
            height, width = level.shape
            rows.append((address, width, height))
            address += level.size
        if not stored:
            self._pixels += [np.ascontiguousarray(level).ravel() for level in levels]
            self._end += sum(level.size for level in levels)
        self._numbers[key] = len(self.levels)
        self._kept.append(levels)
        self.levels.append(rows)
        return len(self.levels) - 1

    def table(self) -> Int64:
        """(T, L, 3) int64 address, width and height; a texture's last level is repeated."""
        most = max((len(rows) for rows in self.levels), default=1)
        padded = [rows + [rows[-1]] * (most - len(rows)) for rows in self.levels] or [[(0, 1, 1)]]
        return np.array(padded, np.int64)

    def pixels(self) -> NDArray[np.uint8]:
        """(N,) uint8 of the textures that are not in the bank; at least one pixel."""
        return np.concatenate(self._pixels) if self._pixels else np.zeros(1, np.uint8)


@dataclass(frozen=True)
class View:
    """One view's tables, with numbers of its own scene.

    Attributes:
        faces: (F, 3, 3), G of each visible face: G p = (s, t, 1) / depth of pixel p.
        numbers: (F,) number of the surface, from 1.
        boxes: (F, 4) x0, y0, x1, y1, the pixels [x0, x1) x [y0, y1) that it may cover.
        endless: (F,) bool, whether the face has no edges.
        rays: (R, 3, 3) of each round object: from pixels to directions in the frame of its unit ball.
        eyes: (R, 3), the camera in that frame.
        tubes: (R,) bool.
        round_numbers: (R,).
        round_boxes: (R, 4).
        looks: (S + 1, COLUMNS) appearance of the surfaces by number; row 0 is nothing.
    """

    faces: Float64
    numbers: Int64
    boxes: Int64
    endless: NDArray[np.bool_]
    rays: Float64
    eyes: Float64
    tubes: NDArray[np.bool_]
    round_numbers: Int64
    round_boxes: Int64
    looks: Float32


def scene_view(
    surfaces: Surfaces, K: Float64, size: tuple[int, int], T_camera_world: Float64, reflected: int = 0
) -> View:
    """The tables of a pinhole camera's view of a scene, without looks.

    Args:
        surfaces: of the world.
        K: (3, 3) camera matrix; pixel (0, 0) is the centre of the top-left pixel.
        size: (width, height) in pixels.
        T_camera_world: (4, 4), rigid; or a rigid transform after a reflection.
        reflected: number of the surface that T_camera_world reflects by, which is not drawn; 0 for none.
    """
    R, t = T_camera_world[:3, :3], T_camera_world[:3, 3]
    frames = np.array(surfaces.corners).reshape(-1, 3, 3) @ R.T
    frames[:, 0] += t
    seen, boxes = _visible(frames, np.array(surfaces.both_sides, bool), K, size, -1 if reflected else 1)
    if reflected:
        keep = seen != reflected - 1
        seen, boxes = seen[keep], boxes[keep]
    # The largest first: in a batch a box is then about as large as those of other views beside it.
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    seen, boxes = seen[order], boxes[order]
    G = np.linalg.inv(frames[seen][:, [1, 2, 0]].transpose(0, 2, 1)) @ np.linalg.inv(K)
    rounds = []
    for k, thing in enumerate(surfaces.rounds):
        box = _round_box(thing, K, R, t, size)
        if box is not None:
            eye = thing.to_local @ (-R.T @ t - thing.centre)
            ray = thing.to_local @ R.T @ np.linalg.inv(K)
            rounds.append((ray, eye, thing.tube, len(surfaces.corners) + 1 + k, box))
    return View(
        G,
        seen + 1,
        boxes,
        np.zeros(len(seen), bool),
        np.array([each[0] for each in rounds]).reshape(-1, 3, 3),
        np.array([each[1] for each in rounds]).reshape(-1, 3),
        np.array([each[2] for each in rounds], bool),
        np.array([each[3] for each in rounds], np.int64),
        np.array([each[4] for each in rounds], np.int64).reshape(-1, 4),
        _no_looks(len(surfaces.corners) + len(surfaces.rounds)),
    )


def with_looks(view: View, surfaces: Surfaces, textures: TextureTable) -> View:
    """A view of a scene with the looks of what may be seen, whose textures are added."""
    looks = _no_looks(len(surfaces.corners) + len(surfaces.rounds))
    for number, G in zip(view.numbers.tolist(), view.faces, strict=True):
        looks[number] = _look(surfaces.materials[number - 1], G, textures)
    for number, box in zip(view.round_numbers.tolist(), view.round_boxes.tolist(), strict=True):
        looks[number] = _round_look(surfaces.rounds[number - 1 - len(surfaces.corners)].material, box, textures)
    return replace(view, looks=looks)


def _no_looks(surfaces: int) -> Float32:
    looks = np.zeros((1 + surfaces, COLUMNS), np.float32)
    looks[:, LIGHT] = -1
    return looks


def photo_view(levels: list[Image], to_photo: Float64, size: tuple[int, int], textures: TextureTable) -> View:
    """The tables of an image whose pixels are at H p of a photo, which continues mirrored beyond its edges.

    It is a face without edges, whose inverse depth is the homography's denominator.
    """
    height, width = levels[0].shape
    A = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1]])
    G = A @ to_photo
    looks = _no_looks(1)
    looks[1] = _look(Material(levels), G, textures)
    looks[1, LEVEL] += -0.1 - FAST.bias  # as sharp as `homography.view`
    looks[1, MIRRORED] = 1
    no_rounds = np.zeros((0, 3))
    return View(
        G[None],
        np.ones(1, np.int64),
        np.array([[0, 0, *size]], np.int64),
        np.ones(1, bool),
        np.zeros((0, 3, 3)),
        no_rounds,
        np.zeros(0, bool),
        np.zeros(0, np.int64),
        np.zeros((0, 4), np.int64),
        looks,
    )


def cast(view: View, pixels: Float64 | Int64) -> tuple[Float64, Int64]:
    """What single pixels show, in float64.

    Args:
        view: of a scene.
        pixels: (N, 2).

    Returns:
        (N,) inverse depth, 0 where nothing is; and (N,) number of the surface.
    """
    p = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1).T
    inverse, number = np.zeros(p.shape[1]), np.zeros(p.shape[1], np.int64)
    if len(view.faces):
        s, t, w = (view.faces[:, k] @ p for k in range(3))
        inside = (s >= 0) & (t >= 0) & (s <= w) & (t <= w) | view.endless[:, None]
        w = np.where(inside & (w > 0) & ((w < 1 / NEAR) | view.endless[:, None]), w, 0)
        nearest = w.argmax(axis=0)
        inverse = w[nearest, np.arange(p.shape[1])]
        number = np.where(inverse > 0, view.numbers[nearest], 0)
    for D, eye, tube, own in zip(view.rays, view.eyes, view.tubes, view.round_numbers, strict=True):
        ray = D @ p
        used = slice(0, 2) if tube else slice(0, 3)
        a, b = np.square(ray[used]).sum(axis=0), eye[used] @ ray[used]
        square = b * b - a * (eye[used] @ eye[used] - 1)
        root = np.sqrt(np.maximum(square, 0))
        depth = (-b - root) / a
        hit = square > 0
        if tube:
            depth = np.where(np.abs(eye[2] + depth * ray[2]) <= 1, depth, (root - b) / a)
            hit &= np.abs(eye[2] + depth * ray[2]) <= 1
        hit &= depth > NEAR
        found = np.where(hit, 1 / np.where(hit, depth, 1), 0)
        number = np.where(found > inverse, own, number)
        inverse = np.maximum(inverse, found)
    return inverse, number


def _visible(
    frames: Float64, both_sides: NDArray[np.bool_], K: Float64, size: tuple[int, int], handedness: int
) -> tuple[NDArray[np.intp], Int64]:
    """The numbers of the faces that may be seen, and (N, 4) boxes of pixels."""
    facing = handedness * np.linalg.det(frames[:, [1, 2, 0]])
    o, eu, ev = frames.transpose(1, 0, 2)
    corners = np.stack([o, o + eu, o + eu + ev, o + ev], axis=1)
    z = corners[..., 2]
    before = (z >= NEAR).all(axis=1, keepdims=True)
    pixels = corners @ K[:2].T / np.where(before, z, 1)[..., None]
    # Faces that extend behind the camera may be anywhere.
    low = np.where(before, pixels.min(axis=1), 0) - _MARGIN
    high = np.where(before, pixels.max(axis=1), size) + _MARGIN
    low, high = np.clip(low, 0, size), np.clip(high, -1, np.array(size) - 1)
    boxes = np.concatenate([np.floor(low), np.floor(high) + 1], axis=1).astype(np.int64)
    seen = np.where(both_sides, np.abs(facing), facing) > 1e-9
    seen &= (z > NEAR).any(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    numbers = np.flatnonzero(seen)
    return numbers, boxes[numbers]


def _look(surface: Material, G: Float64, textures: TextureTable) -> tuple[float, ...]:
    height, width = surface.levels[0].shape
    determinant = abs(np.linalg.det(G)) * width * height * surface.repeats[0] * surface.repeats[1]
    level = 0.5 * np.log2(max(determinant, 1e-30)) + FAST.bias
    light = -1 if surface.light is None else textures.number([surface.light])
    return (*surface.repeats, *(shift % 1 for shift in surface.shift), surface.gain, surface.bias, level, _SLOPE,
            textures.number(surface.levels), 0, light)  # fmt: skip


def _round_look(surface: Material, box: list[int], textures: TextureTable) -> tuple[float, ...]:
    pixels = max(box[2] - box[0], box[3] - box[1])
    across = surface.levels[0].shape[1] * surface.repeats[0] / 3.0
    level = np.log2(max(across / pixels, 1.0)) + FAST.bias
    return (*surface.repeats, *surface.shift, surface.gain, surface.bias, level, 0,
            textures.number(surface.levels), 0, -1)  # fmt: skip


def _round_box(
    thing: Round, K: Float64, R: Float64, t: Float64, size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """The pixels that a round object may cover; None if it is not seen."""
    width, height = size
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64)
    corners = (signs @ np.linalg.inv(thing.to_local).T + thing.centre) @ R.T + t
    if (corners[:, 2] < NEAR).any():
        return None
    pixels = corners @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    x0, y0 = np.ceil(np.clip(pixels.min(axis=0), 0, (width, height))).astype(int)
    x1, y1 = np.floor(np.clip(pixels.max(axis=0), -1, (width - 1, height - 1))).astype(int) + 1
    return (int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None


@dataclass(frozen=True)
class ViewTables:
    """The tables of V views of one batch; `View` explains them.

    Attributes:
        size: (width, height) of all views.
        faces: (V, F, 3, 3) float32, for pixels from the middle of the image, which float32 can tell apart.
        numbers: (V, F) int16.
        endless: (V, F) bool.
        face_boxes: (F, V, 4) int64.
        rays: (V, R, 3, 3) float32, likewise.
        eyes: (V, R, 3) float32.
        tubes: (V, R) bool.
        round_numbers: (V, R) int16.
        round_boxes: (R, V, 4) int64.
        looks: (V, S, COLUMNS) float32.
        textures: (T, L, 3) int64 address, width, height.
        pixels: (N,) uint8 of textures that are not in the bank.
        bank_size: first address in `pixels`.
    """

    size: tuple[int, int]
    faces: Float32
    numbers: NDArray[np.int16]
    endless: NDArray[np.bool_]
    face_boxes: Int64
    rays: Float32
    eyes: Float32
    tubes: NDArray[np.bool_]
    round_numbers: NDArray[np.int16]
    round_boxes: Int64
    looks: Float32
    textures: Int64
    pixels: NDArray[np.uint8]
    bank_size: int


def from_middle(size: tuple[int, int]) -> Float64:
    """(3, 3), pixels from the middle of a (width, height) image to those from the centre of its top-left one."""
    return np.array([[1, 0, (size[0] - 1) / 2], [0, 1, (size[1] - 1) / 2], [0, 0, 1]])


def tabulate(views: Sequence[View], size: tuple[int, int], textures: TextureTable) -> ViewTables:
    """Combine views of one (width, height).

    Raises:
        ValueError: the bank and the textures are too large for addresses of 32 bits.
    """
    own = textures.pixels()
    if textures.bank_size + len(own) >= 2**31:
        raise ValueError(f"{textures.bank_size + len(own)} pixels of photos and textures; expected less than 2^31")
    middle = from_middle(size)
    count = len(views)
    most = max((len(view.faces) for view in views), default=0)
    most_rounds = max((len(view.rays) for view in views), default=0)
    surfaces = max((len(view.looks) for view in views), default=1)
    tables = ViewTables(
        size,
        np.zeros((count, most, 3, 3), np.float32),
        np.zeros((count, most), np.int16),
        np.zeros((count, most), bool),
        np.zeros((most, count, 4), np.int64),
        np.zeros((count, most_rounds, 3, 3), np.float32),
        np.zeros((count, most_rounds, 3), np.float32),
        np.zeros((count, most_rounds), bool),
        np.zeros((count, most_rounds), np.int16),
        np.zeros((most_rounds, count, 4), np.int64),
        np.zeros((count, surfaces, COLUMNS), np.float32),
        textures.table(),
        own,
        textures.bank_size,
    )
    tables.looks[..., LIGHT] = -1
    for k, view in enumerate(views):
        f, r = len(view.faces), len(view.rays)
        tables.faces[k, :f] = view.faces @ middle
        tables.numbers[k, :f] = view.numbers
        tables.endless[k, :f] = view.endless
        tables.face_boxes[:f, k] = view.boxes
        tables.rays[k, :r] = view.rays @ middle
        tables.eyes[k, :r] = view.eyes
        tables.tubes[k, :r] = view.tubes
        tables.round_numbers[k, :r] = view.round_numbers
        tables.round_boxes[:r, k] = view.round_boxes
        tables.looks[k, : len(view.looks)] = view.looks
    return tables
