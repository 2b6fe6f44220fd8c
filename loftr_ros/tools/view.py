"""`loftr_ros view`: shows the front end's results in rerun.

Entities: `current` and `keyframe` are 2D, `world` is the trajectory's frame (the optical axes of its first keyframe),
`plots` are numbers over time, `log` is text.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe
from loftr_ros.frontend.odometry import Location
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.geometry.camera import CameraModel

Array = NDArray[np.float64]
Colors = NDArray[np.uint8]

# In rerun (0, 0) is the corner of the top-left pixel, not its centre.
_HALF_PIXEL = 0.5
_JPEG_QUALITY = 85
# A growing path is logged again and again. In pieces of this many poses its cost is linear, not quadratic.
_PIECE = 100
# Depths with a larger relative uncertainty are not drawn: distant points would jump.
_MAX_RELATIVE_STD = 0.2
# Length of a frustum as a fraction of its cells' median depth, and the length if no depth is known.
_FRUSTUM, _FRUSTUM_LENGTH = 0.1, 0.1
_OUTLIER = (210, 50, 50)
_CURRENT = (255, 160, 0)
_SEGMENTS = ((90, 170, 255), (120, 220, 120), (220, 130, 220), (240, 220, 90))


@dataclass
class _Shown:
    """A keyframe of the buffer, as shown.

    Attributes:
        keyframe: the keyframe.
        picture: its image as rerun's.
        colors: (L, 3) uint8 RGB of its cells.
        depth, location: as shown last; the front end replaces them as they improve.
    """

    keyframe: Keyframe
    picture: Any
    colors: Colors
    depth: CellDepth | None = None
    location: Location | None = None


class ViewLog:
    """Logs results one after the other. Computes only what is drawn."""

    def __init__(self, rerun: ModuleType, stream: Any) -> None:
        """Log to a stream.

        Args:
            rerun: the module.
            stream: a `rerun.RecordingStream`, or anything with its `log` and `set_time`.
        """
        self._rerun, self._stream = rerun, stream
        self._keyframes: dict[int, _Shown] = {}
        self._beside: int | None = None
        self._piece: list[Array] = []
        self._pieces = 0
        self._segment = -1
        stream.log("world", rerun.ViewCoordinates.RDF, static=True)

    def add(self, result: FrontEndResult, number: int, picture: NDArray[np.uint8] | None = None) -> None:
        """Log a frame's result.

        Args:
            result: of the frame.
            number: of the frame in the recording.
            picture: (H, W, 3) uint8 BGR or (H, W) uint8 gray, the frame's image in colour; None for the front
                end's gray image.
        """
        frame = result.frame
        self._set_time(number, frame.stamp_ns)
        picture = frame.image if picture is None else picture
        shown = self._picture(picture)
        self._stream.log("current/image", shown)
        for event in result.events:
            keyframe = event.keyframe
            text = f"keyframe {keyframe.id} {'added' if event.added else 'dropped'}: {event.reason.name}"
            self._stream.log("log", self._rerun.TextLog(text, level="INFO"))
            if not event.added:
                self._keyframes.pop(keyframe.id, None)
            elif keyframe.frame is frame:
                self._keyframes[keyframe.id] = _Shown(keyframe, shown, cell_colors(keyframe.encoded, picture))
            else:  # of an earlier frame that failed halfway
                image = keyframe.frame.image
                colors = cell_colors(keyframe.encoded, image)
                self._keyframes[keyframe.id] = _Shown(keyframe, self._picture(image), colors)
        self._log_matches(result)
        for each in self._keyframes.values():
            self._log_keyframe(each)
        self._log_place(result)
        self._log_plots(result)

    def refuse(self, number: int, stamp_ns: int, reason: str) -> None:
        """Log that a frame was refused."""
        self._set_time(number, stamp_ns)
        self._stream.log("log", self._rerun.TextLog(f"frame {number} refused: {reason}", level="WARN"))

    def _set_time(self, number: int, stamp_ns: int) -> None:
        self._stream.set_time("frame", sequence=number)
        self._stream.set_time("stamp", timestamp=np.datetime64(stamp_ns, "ns"))

    def _picture(self, image: NDArray[np.uint8]) -> Any:
        picture = self._rerun.Image(image, color_model="L" if image.ndim == 2 else "BGR")
        return picture.compress(jpeg_quality=_JPEG_QUALITY)

    def _log_matches(self, result: FrontEndResult) -> None:
        """Log the matches with the first keyframe, which locates the frame."""
        rerun, log = self._rerun, self._stream.log
        if not result.matches:
            for path in ("current/motion", "current/outliers", "current/inliers", "keyframe"):
                log(path, rerun.Clear(recursive=True))
            self._beside = None
            return
        match = result.matches[0]
        if self._beside != match.keyframe.id:
            held = self._keyframes.get(match.keyframe.id)
            # The frame may have been matched with a keyframe that it evicted.
            log("keyframe/image", held.picture if held else self._picture(match.keyframe.frame.image))
            self._beside = match.keyframe.id
        inlier, found = match.pose.inliers, match.correspondences
        outliers, inliers = found[~inlier], found[inlier]
        colors = confidence_colors(inliers.confidence)
        there, here = inliers.keyframe_points + _HALF_PIXEL, inliers.current_points + _HALF_PIXEL
        log("current/motion", rerun.LineStrips2D(np.stack([there, here], axis=1), colors=colors, radii=0.5))
        log("current/outliers", rerun.Points2D(outliers.current_points + _HALF_PIXEL, colors=[_OUTLIER], radii=1.0))
        log("current/inliers", rerun.Points2D(here, colors=colors, radii=2.0))
        log("keyframe/inliers", rerun.Points2D(there, colors=colors, radii=2.0))

    def _log_keyframe(self, shown: _Shown) -> None:
        """Log a keyframe's frustum and cells if they are new or have improved."""
        rerun, keyframe = self._rerun, shown.keyframe
        camera, location, depth = keyframe.frame.camera, keyframe.location, keyframe.depth
        if camera is None or location is None or (location is shown.location and depth is shown.depth):
            return
        shown.location, shown.depth = location, depth
        path = f"world/keyframes/{keyframe.id}"
        self._stream.log(path, _transform(rerun, location.pose))
        # Beside the points, not above them: entities below a pinhole are flat.
        self._stream.log(f"{path}/frustum", _pinhole(rerun, camera, frustum_length(depth)))
        points, cells = known_points(keyframe)
        self._stream.log(f"{path}/points", rerun.Points3D(points, colors=shown.colors[cells]))

    def _log_place(self, result: FrontEndResult) -> None:
        rerun, camera, location = self._rerun, result.frame.camera, result.place
        if camera is None or location is None:
            # Entities stay until they are replaced: remove the camera, or it would seem to stand still.
            self._stream.log("world/camera", rerun.Clear(recursive=True))
            return
        length = frustum_length(result.matches[0].keyframe.depth if result.matches else None)
        self._stream.log("world/camera", _transform(rerun, location.pose))
        self._stream.log("world/camera/frustum", _pinhole(rerun, camera, 1.5 * length))
        self._stream.log("world/camera/centre", rerun.Points3D(np.zeros((1, 3)), colors=[_CURRENT], radii=length / 8))
        if location.segment != self._segment:
            self._segment, self._pieces, self._piece = location.segment, self._pieces + 1, []
        elif len(self._piece) == _PIECE:
            self._pieces, self._piece = self._pieces + 1, self._piece[-1:]
        self._piece.append(location.pose[:3, 3])
        color = _SEGMENTS[self._segment % len(_SEGMENTS)]
        strip = rerun.LineStrips3D([np.array(self._piece)], colors=[color])
        self._stream.log(f"world/path/{self._segment}/{self._pieces}", strip)

    def _log_plots(self, result: FrontEndResult) -> None:
        numbers = {f"latency_ms/{stage}": 1e3 * seconds for stage, seconds in result.latencies.items()}
        if result.matches:
            match = result.matches[0]
            numbers["matches/found"] = len(match.correspondences)
            numbers["matches/inliers"] = int(match.pose.inliers.sum())
            numbers["parallax_px"] = match.pose.median_parallax
        location = result.place
        if location is not None:
            numbers["scale_std"] = location.scale_std
        for name, value in numbers.items():
            if np.isfinite(value):
                self._stream.log(f"plots/{name}", self._rerun.Scalars(float(value)))


def known_points(keyframe: Keyframe) -> tuple[Array, NDArray[np.intp]]:
    """Points of a keyframe's cells with a depth that is certain enough to draw.

    Returns:
        (N, 3) points in the keyframe's optical frame, and (N,) their cells.
    """
    rays, depth = keyframe.encoded.cell_rays, keyframe.depth
    if rays is None or depth is None:
        return np.zeros((0, 3)), np.zeros(0, np.intp)
    with np.errstate(invalid="ignore"):  # excludes unknown depths (NaN) and those beyond infinity
        certain = np.sqrt(depth.variance) < _MAX_RELATIVE_STD * depth.inverse
    cells = np.flatnonzero(certain & np.isfinite(rays).all(axis=1))
    return np.insert(rays[cells], 2, 1.0, axis=1) / depth.inverse[cells, None], cells


def frustum_length(depth: CellDepth | None) -> float:
    """Length of a drawn camera in the trajectory's unit: a fraction of its typical depth."""
    if depth is None or not (seen := depth.inverse[depth.known & (depth.inverse > 0)]).size:
        return _FRUSTUM_LENGTH
    return _FRUSTUM / float(np.median(seen))


def confidence_colors(confidence: NDArray[np.floating]) -> Colors:
    """(N, 3) uint8 RGB of (N,) confidences, from blue (0) through green to yellow (1), the same in every frame."""
    # The ends of the map are too dark to see, and red marks outliers.
    shade = np.round(35 + 120 * np.clip(confidence, 0, 1)).astype(np.uint8).reshape(-1, 1)
    if not len(shade):
        return np.zeros((0, 3), np.uint8)
    return np.ascontiguousarray(np.asarray(cv2.applyColorMap(shade, cv2.COLORMAP_TURBO), np.uint8)[:, 0, ::-1])


def cell_colors(encoded: EncodedFrame, picture: NDArray[np.uint8]) -> Colors:
    """(L, 3) uint8 RGB of a frame's cells, from its (H, W, 3) BGR or (H, W) gray image."""
    height, width = picture.shape[:2]
    u, v = np.clip(np.rint(encoded.cell_points).astype(np.int64), 0, (width - 1, height - 1)).T
    seen = picture[v, u]
    return np.ascontiguousarray(np.repeat(seen[:, None], 3, axis=1) if seen.ndim == 1 else seen[:, ::-1])


def _transform(rerun: ModuleType, pose: Array) -> Any:
    return rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])


def _pinhole(rerun: ModuleType, camera: CameraModel, length: float) -> Any:
    """The frustum of a camera, without its lens distortion."""
    matrix = camera.matrix.copy()
    matrix[:2, 2] += _HALF_PIXEL
    return rerun.Pinhole(
        image_from_camera=matrix,
        resolution=[camera.width, camera.height],
        camera_xyz=rerun.ViewCoordinates.RDF,
        image_plane_distance=length,
    )
