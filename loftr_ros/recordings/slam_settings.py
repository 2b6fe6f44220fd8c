"""Calibrations in the settings of SLAM systems: ORB-SLAM and its relatives, and VINS (camodocal)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loftr_ros.geometry.camera import EQUIDISTANT, NO_DISTORTION, PLUMB_BOB, CameraError, CameraModel

_PINHOLES = ("pinhole", "rectified", "perspective")
_FISHEYES = ("kannalabrandt8", "kannalabrandt", "fisheye")


def cameras_of(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The cameras of a settings file by name, for `camera_of`; none if it is another kind of file."""
    if "projection_parameters" in content and "model_type" in content:
        return {"camera": _camodocal(content)}
    found: dict[str, Mapping[str, Any]] = {}
    for name in ("Camera", "Camera1", "Camera2"):
        values = {key.removeprefix(f"{name}."): value for key, value in content.items() if key.startswith(f"{name}.")}
        if {"fx", "fy", "cx", "cy"} <= set(values):
            common = {key: content.get(f"Camera.{key}") for key in ("type", "model", "width", "height", "cols", "rows")}
            found[name] = {**{key: value for key, value in common.items() if value is not None}, **values}
    return found


def camera_of(values: Mapping[str, Any]) -> CameraModel:
    """One of these cameras.

    Args:
        values: fx, fy, cx, cy, coefficients by name, size, and kind.

    Raises:
        CameraError: there is no image size, or OpenCV does not have the model.
    """
    width, height = values.get("width", values.get("cols")), values.get("height", values.get("rows"))
    if width is None or height is None:
        raise CameraError("it has no image size (Camera.width and Camera.height)")
    kind = str(values.get("type", values.get("model", "PinHole"))).lower().replace("_", "")
    if kind not in (*_PINHOLES, *_FISHEYES):
        raise CameraError(f"camera model '{kind}' is not known; expected PinHole or KannalaBrandt8")
    names = ("k1", "k2", "k3", "k4") if kind in _FISHEYES else ("k1", "k2", "p1", "p2", "k3")
    if kind not in _FISHEYES and any(float(values.get(name, 0)) for name in ("k4", "k5", "k6")):
        raise CameraError("it has k4 to k6, which do not belong to the model it names")
    coefficients = np.array([float(values.get(name, 0)) for name in names])
    model = EQUIDISTANT if kind in _FISHEYES else PLUMB_BOB if coefficients.any() else NO_DISTORTION
    numbers = {name: float(values[name]) for name in ("fx", "fy", "cx", "cy")}
    matrix = np.array([[numbers["fx"], 0, numbers["cx"]], [0, numbers["fy"], numbers["cy"]], [0, 0, 1.0]])
    if float(width) != int(width) or float(height) != int(height):
        raise CameraError(f"image size of {width}x{height}; expected whole numbers of pixels")
    return CameraModel(int(width), int(height), matrix, model, coefficients if model != NO_DISTORTION else np.zeros(0))


def _camodocal(content: Mapping[str, Any]) -> Mapping[str, Any]:
    projection = dict(content["projection_parameters"])
    common = {"type": content["model_type"], "width": content.get("image_width"), "height": content.get("image_height")}
    common = {key: value for key, value in common.items() if value is not None}
    if "mu" in projection:  # KANNALA_BRANDT: the first coefficient is one, so numbering starts at two
        renamed = {"mu": "fx", "mv": "fy", "u0": "cx", "v0": "cy", "k2": "k1", "k3": "k2", "k4": "k3", "k5": "k4"}
        return {**common, **{renamed.get(str(name), str(name)): value for name, value in projection.items()}}
    return {**common, **dict(content.get("distortion_parameters") or {}), **projection}
