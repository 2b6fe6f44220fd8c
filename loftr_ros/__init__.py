"""loftr_ros: LoFTR correspondences, relative poses and odometry for robots.

The names below are the public Python interface. They are loaded when they are first used: importing `loftr_ros` itself
loads neither torch nor OpenCV.

    matches = loftr_ros.match("a.png", "b.png")
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch is imported, anywhere: OpenMP reads it once. Its threads wait for each other by computing, on cores that
# others need; beside one busy process, matching takes five times as long. What the user sets holds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

if TYPE_CHECKING:
    from loftr_ros.frontend.config import FrontEndConfig
    from loftr_ros.frontend.frame import Frame
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.frontend.stream import FrameRefusedError
    from loftr_ros.geometry.camera import CameraError
    from loftr_ros.geometry.camera import CameraModel as Camera
    from loftr_ros.matcher.checkpoints.recognition import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.places.archive import Archive
    from loftr_ros.places.keyframe import PlacesError
    from loftr_ros.places.live import LiveLoopDetector as LoopDetector
    from loftr_ros.recordings import SourceError, load_camera, open_recording
    from loftr_ros.settings import ConfigError
    from loftr_ros.tools.match import PairMatches, load_matcher, match

    __version__: str

__all__ = [
    "Archive", "Camera", "CameraError", "ConfigError", "DeviceError", "Frame", "FrameRefusedError", "FrontEnd",
    "FrontEndConfig", "LoopDetector", "MaskError", "PairMatches", "PlacesError", "SourceError", "WeightsError",
    "__version__", "load_camera", "load_matcher", "match", "open_recording",
]  # fmt: skip
# Where they are, and what those are called there that go by another name here.
_MODULES = {
    "loftr_ros.geometry.camera": ("CameraError", "CameraModel"),
    "loftr_ros.frontend.config": ("FrontEndConfig",),
    "loftr_ros.frontend.frame": ("Frame",),
    "loftr_ros.frontend.mask": ("MaskError",),
    "loftr_ros.frontend.pipeline": ("FrontEnd",),
    "loftr_ros.frontend.stream": ("FrameRefusedError",),
    "loftr_ros.matcher.precision": ("DeviceError",),
    "loftr_ros.matcher.checkpoints.recognition": ("WeightsError",),
    "loftr_ros.places.archive": ("Archive",),
    "loftr_ros.places.keyframe": ("PlacesError",),
    "loftr_ros.places.live": ("LiveLoopDetector",),
    "loftr_ros.recordings": ("SourceError", "load_camera", "open_recording"),
    "loftr_ros.settings": ("ConfigError",),
    "loftr_ros.tools.match": ("PairMatches", "load_matcher", "match"),
    "loftr_ros.tools.version": ("VERSION",),
}
_RENAMED = {"Camera": "CameraModel", "LoopDetector": "LiveLoopDetector", "__version__": "VERSION"}


def __getattr__(name: str) -> Any:
    """Load a public name the first time that it is used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'loftr_ros' has no attribute '{name}'")
    there = _RENAMED.get(name, name)
    module = import_module(next(module for module, names in _MODULES.items() if there in names))
    globals()[name] = value = getattr(module, there)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
