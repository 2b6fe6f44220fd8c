"""Camera models: pixels of the raw image to rays of the optical frame, and back.

The models are those of `sensor_msgs/CameraInfo` (REP 104): `plumb_bob`, `rational_polynomial`,
`equidistant` (fisheye), and none for images that are already undistorted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.geometry.distortion import EquidistantLens, PolynomialLens

Array = NDArray[np.float64]

PLUMB_BOB = "plumb_bob"
RATIONAL_POLYNOMIAL = "rational_polynomial"
EQUIDISTANT = "equidistant"
NO_DISTORTION = "none"

# Number of coefficients of each model. CameraInfo's rational polynomial has 8; OpenCV adds a thin prism (12) and a
# tilted sensor (14), which some drivers publish under the same name. Zeros after these are padding.
_COEFFICIENT_COUNTS: dict[str, tuple[int, ...]] = {
    PLUMB_BOB: (4, 5),
    RATIONAL_POLYNOMIAL: (8, 12, 14),
    EQUIDISTANT: (4,),
    NO_DISTORTION: (0,),
}
# Names that do not define the distortion.
_NAMELESS = ("", "pinhole", "perspective")
# Names used by drivers and calibration tools, in lower case and with underscores.
_ALIASES = {
    **dict.fromkeys((*_NAMELESS, "none", "no", "no_distortion", "undistorted", "rectified", "ideal"), NO_DISTORTION),
    **dict.fromkeys(
        (
            "plumb_bob",
            "plumbbob",
            "brown_conrady",
            "brown",
            "radtan",
            "rad_tan",
            "radial_tangential",
            "radialtangential",
            "opencv",
        ),
        PLUMB_BOB,
    ),
    **dict.fromkeys(("rational_polynomial", "rational", "full_opencv"), RATIONAL_POLYNOMIAL),
    **dict.fromkeys(
        (
            "equidistant",
            "equi",
            "fisheye",
            "opencv_fisheye",
            "kannala_brandt",
            "kannala_brandt4",
            "kannala_brandt8",
            "kannalabrandt8",
            "kannala",
            "kb4",
            "kb",
        ),
        EQUIDISTANT,
    ),
}
# Models that differ from what their names suggest; unusable with coefficients.
_OTHERS = {
    "inverse_brown_conrady": "it maps distorted to undistorted points, so its coefficients are not those of "
    "plumb_bob; rectify the images in the driver, or calibrate the camera",
    "modified_brown_conrady": "its tangential terms are not those of plumb_bob; calibrate the camera",
    "ftheta": "expected a model of OpenCV; calibrate the camera as equidistant",
    "fov": "expected a model of OpenCV; calibrate the camera as equidistant or plumb_bob",
    "atan": "expected a model of OpenCV; calibrate the camera as equidistant or plumb_bob",
    "division": "expected a model of OpenCV; calibrate the camera as plumb_bob",
    "thin_prism_fisheye": "its prism is not part of equidistant; calibrate the camera as equidistant",
    **dict.fromkeys(
        ("mei", "omnidirectional", "omni", "xi", "unified", "double_sphere", "ds", "eucm", "scaramuzza", "ocam"),
        "its field of view is beyond 180 degrees, which OpenCV's models for CameraInfo do not support; rectify the "
        "images to a pinhole or calibrate the camera as equidistant",
    ),
}


class CameraError(ValueError):
    """An unusable calibration. The message says why, and what was expected."""


@dataclass(frozen=True, eq=False)
class CameraModel:
    """Intrinsics and distortion of one camera at one image size.

    Pixels are (u, v) with (0, 0) at the centre of the top-left pixel. Rays are (x / z, y / z) in the optical frame (REP
    103: x right, y down, z forward), for points in front of the camera.

    Attributes:
        width, height: image size in pixels that the calibration refers to.
        matrix: (3, 3) float64 camera matrix K of the raw (distorted) image, skew included.
        distortion_model: `plumb_bob`, `rational_polynomial`, `equidistant` or `none`; names used by drivers and
            calibration tools are accepted.
        distortion: (D,) float64 coefficients, in the order of CameraInfo and OpenCV. All zeros mean no distortion. Only
            with `equidistant` outside of a CameraInfo they mean the ideal fisheye (angle proportional to radius).

    Raises:
        CameraError: the values are not a calibration.
    """

    width: int
    height: int
    matrix: Array
    distortion_model: str = NO_DISTORTION
    distortion: Array = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        coefficients = np.array(self.distortion, dtype=np.float64).ravel()
        model, coefficients = known_model(self.distortion_model, coefficients)
        if self.width < 1 or self.height < 1:
            raise CameraError(f"image size {self.width}x{self.height} in the calibration; expected the images' size")
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise CameraError(f"camera matrix K must be 3x3 and finite, got {matrix.tolist()}")
        if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise CameraError(
                f"focal lengths in K are {matrix[0, 0]:g} and {matrix[1, 1]:g} px; expected positive values "
                "(an uncalibrated camera publishes zeros: calibrate it, or publish its calibration)"
            )
        if matrix[1, 0] != 0 or matrix[2].tolist() != [0, 0, 1]:
            raise CameraError(f"camera matrix K must be [fx s cx; 0 fy cy; 0 0 1], got {matrix.tolist()}")
        for name, value in (("distortion_model", model), ("matrix", matrix), ("distortion", coefficients)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_camera_info(cls, info: Any) -> CameraModel:
        """The model in a `sensor_msgs/CameraInfo`-like message (k, d, width, height of the raw image).

        Binning and region of interest are applied in the message's own order (the region refers to the unbinned,
        full-resolution image): the result is for the published image.

        Raises:
            CameraError: the message has no usable calibration.
        """
        if np.size(info.k) != 9:
            raise CameraError(f"camera matrix K has {np.size(info.k)} entries; expected 9")
        matrix = np.array(info.k, dtype=np.float64).reshape(3, 3)
        if not np.isfinite(matrix).all():
            raise CameraError(f"camera matrix K must be 3x3 and finite, got {matrix.tolist()}")
        width, height = int(info.width), int(info.height)
        model, coefficients = str(info.distortion_model), np.asarray(info.d, dtype=np.float64).ravel()
        if not coefficients.any():
            # Whatever the model's name. As a fisheye they would mean an ideal one, which no driver intends.
            model, coefficients = NO_DISTORTION, np.zeros(0)
        roi = info.roi
        if roi.x_offset or roi.y_offset or roi.width or roi.height:
            right, bottom = int(roi.x_offset) + int(roi.width), int(roi.y_offset) + int(roi.height)
            if not (roi.width and roi.height) or right > width or bottom > height:
                raise CameraError(
                    f"region of interest of {roi.width}x{roi.height} at ({roi.x_offset}, {roi.y_offset}) in an image "
                    f"of {width}x{height}; expected a part of the full-resolution image, or zeros for all of it"
                )
            matrix[0, 2] -= int(roi.x_offset)
            matrix[1, 2] -= int(roi.y_offset)
            width, height = int(roi.width), int(roi.height)
        binning = (max(int(info.binning_x), 1), max(int(info.binning_y), 1))
        # A binned pixel's centre lies between the centres of its source pixels.
        matrix = _scaled(matrix, 1 / binning[0], 1 / binning[1])
        return cls(width // binning[0], height // binning[1], matrix, model, coefficients)

    @property
    def focal_length(self) -> float:
        """Mean of the two focal lengths in pixels; converts angles near the image's centre to pixels."""
        return float(self.matrix[0, 0] + self.matrix[1, 1]) / 2

    def unproject(self, pixels: ArrayLike) -> Array:
        """Undistorted rays of pixels.

        Args:
            pixels: (N, 2) pixels of the raw image.

        Returns:
            (N, 2) float64 normalised coordinates (x / z, y / z). NaN if the pixel has no ray in front of the camera: at
            90 degrees or more off the axis, or where the distortion is not invertible.
        """
        u, v = np.asarray(pixels, dtype=np.float64).reshape(-1, 2).T
        k = self.matrix
        y = (v - k[1, 2]) / k[1, 1]
        x = (u - k[0, 2] - k[0, 1] * y) / k[0, 0]
        if self._lens is not None:
            x, y = self._lens.undistort(x, y)
        return np.stack([x, y], axis=1)

    def project(self, points: ArrayLike) -> Array:
        """Pixels of points in the optical frame.

        Args:
            points: (N, 3) points, any unit.

        Returns:
            (N, 2) float64 pixels of the raw image, possibly outside of it. NaN if a point is not in front of the camera
            (z <= 0), or where the distortion is not invertible.
        """
        x, y, z = np.asarray(points, dtype=np.float64).reshape(-1, 3).T
        z = np.where(z > 0, z, np.nan)
        x, y = x / z, y / z
        if self._lens is not None:
            x, y = self._lens.distort(x, y)
        k = self.matrix
        return np.stack([k[0, 0] * x + k[0, 1] * y + k[0, 2], k[1, 1] * y + k[1, 2]], axis=1)

    def resized(self, width: int, height: int) -> CameraModel:
        """The same camera at another image size, half-pixel correct as `cv2.resize`."""
        matrix = _scaled(self.matrix, width / self.width, height / self.height)
        return CameraModel(width, height, matrix, self.distortion_model, self.distortion)

    def same_as(self, other: CameraModel | None) -> bool:
        """Whether both map the same pixels to the same rays."""
        return (
            other is not None
            and (self.width, self.height, self.distortion_model) == (other.width, other.height, other.distortion_model)
            and np.array_equal(self.matrix, other.matrix)
            and np.array_equal(self.distortion, other.distortion)
        )

    @cached_property
    def _lens(self) -> PolynomialLens | EquidistantLens | None:
        if self.distortion_model == NO_DISTORTION:
            return None
        return (EquidistantLens if self.distortion_model == EQUIDISTANT else PolynomialLens)(self.distortion)


def known_model(name: str, coefficients: Array) -> tuple[str, Array]:
    """The distortion model for a name and a number of coefficients, without padding.

    Args:
        name: as drivers and calibration tools write it: "Brown Conrady", "fisheye", "RadTan", "".
        coefficients: (D,) float64.

    Raises:
        CameraError: the model is unknown, or has another number of coefficients; the message names the matching models.
    """
    if not np.isfinite(coefficients).all():
        raise CameraError(f"distortion coefficients D are not finite: {coefficients.tolist()}")
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    plain = plain.removeprefix("distortion_")  # the spelling of librealsense's enumeration
    model = _ALIASES.get(plain)
    size, some = coefficients.size, bool(coefficients.any())
    if not some and model != EQUIDISTANT:
        return NO_DISTORTION, np.zeros(0)
    if plain == "modified_brown_conrady" and size == 5 and not coefficients[2:4].any():
        model = PLUMB_BOB  # the two differ only in the tangential terms
    if plain in _OTHERS and model is None:
        raise CameraError(f"distortion model '{name}' cannot be used: {_OTHERS[plain]}")
    if model is None:
        raise CameraError(f"distortion model '{name}' is not known; expected one of {', '.join(_COEFFICIENT_COUNTS)}")
    if plain in _NAMELESS and size != 4:  # without a name the number decides, except for 4, which two models have
        model = next((each for each, counts in _COEFFICIENT_COUNTS.items() if size in counts), model)
    counts = _COEFFICIENT_COUNTS[model]
    if size > counts[-1] and not coefficients[counts[-1] :].any():
        return model, coefficients[: counts[-1]]
    if size not in counts:
        have = [each for each, counts in _COEFFICIENT_COUNTS.items() if size in counts]
        hint = f"; {size} coefficients are those of {' or '.join(have)}: is that the model?" if have else ""
        raise CameraError(
            f"distortion model '{name}' came with {size} coefficients in D; "
            f"expected {' or '.join(map(str, counts))}{hint}"
        )
    return model, coefficients


def _scaled(matrix: Array, scale_u: float, scale_v: float) -> Array:
    """K of the image resized by these factors; (0, 0) stays the centre of the top-left pixel."""
    matrix = np.diag([scale_u, scale_v, 1.0]) @ matrix
    matrix[0, 2] += 0.5 * scale_u - 0.5
    matrix[1, 2] += 0.5 * scale_v - 0.5
    return matrix
