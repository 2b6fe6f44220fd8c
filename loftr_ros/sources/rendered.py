"""Views of the scene that the project renders itself, with exact poses."""

from __future__ import annotations

from collections.abc import Iterator

from loftr_ros.evaluation.scene import Scene, default_camera, trajectory
from loftr_ros.frontend.camera import CameraModel
from loftr_ros.sources.base import FRAME_ID, PixelImage, Source, SourceError, SourceFrame, SourceOptions, stamp_at

_DEFAULTS = {"seed": 1, "frames": 90, "rate": 30, "width": 640, "height": 480}
_SCENES = ("room",)


class RenderedSource(Source):
    """A hand-held walk through the rendered room. A frame takes about a tenth of a second to render."""

    kind = "rendered"
    slow = True
    camera: CameraModel

    def __init__(
        self, name: str, query: dict[str, str], options: SourceOptions, camera: CameraModel | None = None
    ) -> None:
        """Builds nothing yet: the scene is made when frames are asked for.

        Args:
            name: which scene; `room` is the only one.
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
            raise SourceError(f"rendered:{name} has {self._frames} frames; start {options.start} is past the last")
        self.rate, self.length = self._rate / options.step, len(self._indices)

    def __iter__(self) -> Iterator[SourceFrame]:
        scene = Scene(self._seed)
        poses = trajectory(self._frames, self._rate, self._seed)
        for index in self._indices:
            image = PixelImage(scene.render(self.camera, poses[index]).image)
            yield SourceFrame(index, stamp_at(index, self._rate), FRAME_ID, image, self.camera, poses[index], True)
