"""A scene to render with a first camera, the output of every builder of scenes."""

from __future__ import annotations

from dataclasses import dataclass

from loftr_ros.training.geometry import Float64
from loftr_ros.training.relief import Relief
from loftr_ros.worlds.rasterizer import Raster, Surfaces, render
from loftr_ros.worlds.texturing import FAST


@dataclass(frozen=True)
class Gloss:
    """A level surface that reflects.

    Attributes:
        surface: its number, as in `Raster`.
        height: of it, in the world.
        share: of its gray values that is reflected at grazing angles.
        blur: standard deviation of the reflected image, in pixels of a view 320 px wide.
    """

    surface: int
    height: float
    share: float
    blur: float


@dataclass(frozen=True)
class SurfaceStage:
    """A scene of faces and round objects, and a first view of it.

    Attributes:
        scene: its contents.
        T_camera_world: (4, 4), the first camera.
        driving: whether cameras move forward on the ground rather than freely.
        gloss: a glossy floor or None. Only `batched` draws what it reflects.
        least_filled: share of a view that must show something; less, and the camera is beyond a wall.
    """

    scene: Surfaces
    T_camera_world: Float64
    driving: bool = False
    gloss: Gloss | None = None
    least_filled: float = 0.3

    def render(self, K: Float64, size: tuple[int, int], T_camera_world: Float64) -> Raster:
        """The view of a pinhole camera with a (width, height) image, uint8."""
        return render(self.scene, K, size, T_camera_world, FAST)


@dataclass(frozen=True)
class ReliefStage:
    """A relief and a first view of it."""

    scene: Relief
    T_camera_world: Float64
    driving: bool = False
    least_filled: float = 0.3

    def render(self, K: Float64, size: tuple[int, int], T_camera_world: Float64) -> Raster:
        """The view of a pinhole camera with a (width, height) image, uint8."""
        return self.scene.render(K, size, T_camera_world)


Stage = SurfaceStage | ReliefStage
