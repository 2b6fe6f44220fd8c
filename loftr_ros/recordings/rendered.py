"""Views of the rendered scene, with exact poses and depth, and a second camera."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.frame import DepthImage
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings.base import FRAME_ID, PixelImage, Source, SourceError, SourceFrame, SourceOptions, stamp_at
from loftr_ros.recordings.companions import RightView
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

_DEFAULTS = {"seed": 1, "frames": 90, "rate": 30, "width": 640, "height": 480}
_SCENES = ("room",)
_FRAME, _USUAL_PIXELS = 0.1, 640 * 480  # s per frame of so many pixels
_BASELINE = 0.12  # m between the two cameras; the walk keeps 0.4 m clear of everything


@dataclass(frozen=True, eq=False)
class _LazyView:
    """A view that is rendered on demand."""

    scene: Scene
    camera: CameraModel
    pose: NDArray[np.float64]

    def read(self) -> PixelImage:
        return PixelImage(self.scene.render(self.camera, self.pose).image)


class RenderedSource(Source):
    """A hand-held walk through the rendered room. A frame takes about a tenth of a second to render.

    Depth comes with the image. The right camera's image, 0.12 m to the right, takes the same time again.
    """

    kind = "rendered"
    slow = True
    lacks: Mapping[str, str] = MappingProxyType({})
    camera: CameraModel

    def __init__(
        self, name: str, query: dict[str, str], options: SourceOptions, camera: CameraModel | None = None
    ) -> None:
        """Check the options; the scene is built when frames are requested.

        Args:
            name: of the scene; `room` is the only one.
            query: `seed`, `frames`, `rate` (Hz), `width` and `height` (px), as text.
            camera: to render with, without distortion; its size then replaces `width` and `height`.

        Raises:
            SourceError: an unknown scene or setting, or one that is not a number.
        """
        if name not in _SCENES:
            raise SourceError(f"there is no rendered scene '{name}'; expected one of {', '.join(_SCENES)}")
        unknown = sorted(set(query) - set(_DEFAULTS))
        if unknown:
            raise SourceError(f"rendered:{name} has no setting '{unknown[0]}'; expected {', '.join(_DEFAULTS)}")
        try:
            settings = {key: int(query.get(key, default)) for key, default in _DEFAULTS.items()}
        except ValueError as error:
            raise SourceError(f"rendered:{name}: settings are whole numbers: {error}") from error
        if min(settings[key] for key in ("frames", "rate", "width", "height")) < 1 or settings["seed"] < 0:
            raise SourceError(f"rendered:{name}: frames, rate, width and height start at 1, seed at 0; got {settings}")
        if camera is not None and camera.distortion_model != "none":
            raise SourceError("the scene is rendered without distortion; give a camera without any")
        self.name = name
        self.camera = camera if camera is not None else default_camera(settings["width"], settings["height"])
        self._seed, self._frames = settings["seed"], settings["frames"]
        self._options = options
        self._rate = options.rate or float(settings["rate"])
        self._indices = options.indices(self._frames)
        if not len(self._indices):
            raise SourceError(f"rendered:{name} has {self._frames} frames; start {options.start} is after the last")
        self.rate, self.length = self._rate / options.step, len(self._indices)
        seconds = _FRAME * self.length * self.camera.width * self.camera.height / _USUAL_PIXELS
        self.cost = f"that takes some {seconds / 60:.0f} min of one core"

    def prepare(self) -> None:
        Scene(self._seed)  # cached for later use

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.after(-1)

    def after(self, stamp_ns: int) -> Iterator[SourceFrame]:
        scene = Scene(self._seed)
        poses = trajectory(self._frames, self._rate, self._seed)
        left_from_right = np.eye(4)
        left_from_right[0, 3] = _BASELINE
        for index in self._indices:
            stamp = stamp_at(index, self._rate)
            if stamp <= stamp_ns:
                continue
            pose = poses[index]
            view = scene.render(self.camera, pose)
            right = RightView(_LazyView(scene, self.camera, pose @ left_from_right), self.camera, left_from_right)
            yield SourceFrame(
                index,
                stamp,
                FRAME_ID,
                PixelImage(view.image),
                self.camera,
                pose,
                True,
                right,
                DepthImage(view.depth, 1.0),
            )
