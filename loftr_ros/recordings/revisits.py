"""A walk through a rendered building that returns to places, with exact poses and depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from loftr_ros.frontend.config import STEREO
from loftr_ros.frontend.frame import DepthImage
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings.base import FRAME_ID, PixelImage, Source, SourceError, SourceFrame, SourceOptions, stamp_at
from loftr_ros.worlds.revisits import World
from loftr_ros.worlds.scene import default_camera

_RATE = 10
_SEED = 700
_BUILDING, _FRAME = 15.0, 0.15  # s for the building and for a frame


class RevisitsSource(Source):
    """Two tours through a building (`worlds.revisits`), some eight minutes. A frame takes 0.15 s to render."""

    kind = "revisits"
    slow = True
    lacks: Mapping[str, str] = MappingProxyType({STEREO: "the rendered building has only one camera"})
    camera: CameraModel

    def __init__(
        self, name: str, query: dict[str, str], options: SourceOptions, camera: CameraModel | None = None
    ) -> None:
        """Plan the walk; the building is built when frames are requested.

        Args:
            name: the world's seed, empty for 700.
            query: `rate` (Hz), as text.
            options: selection of frames.
            camera: not supported; must be None.

        Raises:
            SourceError: an unknown setting, one that is not a whole number, or a camera.
        """
        if camera is not None:
            raise SourceError("the rendered building has its own camera; omit the option `camera`")
        unknown = sorted(set(query) - {"rate"})
        if unknown:
            raise SourceError(f"revisits has no setting '{unknown[0]}'; expected revisits:SEED?rate=HZ")
        try:
            seed, rate = int(name or _SEED), int(query.get("rate", _RATE))
        except ValueError as error:
            raise SourceError(f"revisits:SEED?rate=HZ takes whole numbers: {error}") from error
        if seed < 0 or rate < 1:
            raise SourceError(f"revisits: a seed starts at 0, and a rate at 1; got {seed} and {rate}")
        self.name = f"revisits:{seed}"
        self.camera = default_camera()
        self._options = options
        self._world = World(seed, float(options.rate or rate))
        self._indices = options.indices(len(self._world))
        if not len(self._indices):
            raise SourceError(f"{self.name} has {len(self._world)} frames; start {options.start} is after the last")
        self.rate, self.length = self._world.rate / options.step, len(self._indices)
        minutes = (_BUILDING + _FRAME * self.length) / 60
        self.cost = (
            f"that takes some {minutes:.0f} min of one core, and 1 GB of memory (less with --frames, --step or "
            f"{self.name}?rate=3)"
        )

    def prepare(self) -> None:
        _ = self._world.building

    def __iter__(self) -> Iterator[SourceFrame]:
        return self.after(-1)

    def after(self, stamp_ns: int) -> Iterator[SourceFrame]:
        world = self._world
        for index in self._indices:
            stamp = stamp_at(index, world.rate)
            if stamp <= stamp_ns:
                continue
            image, depth = world.shot(index)
            yield SourceFrame(
                index,
                stamp,
                FRAME_ID,
                PixelImage(image),
                self.camera,
                world.poses[index],
                True,
                depth=DepthImage(depth, 1.0),
            )
