"""`import loftr_ros`: what a Python program gets, and when."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import FineShiftMatcher, PanningStream, texture
from made_walk import there_and_back

import loftr_ros
from loftr_ros.worlds.scene import Scene

PACKAGE = Path(loftr_ros.__file__).parent


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_neither_torch_nor_opencv_nor_numpy() -> None:
    heavy = "{'torch', 'cv2', 'numpy', 'scipy', 'rclpy', 'lancedb'}"
    assert run_python(f"import sys, loftr_ros; dir(loftr_ros); print({heavy} & set(sys.modules))") == "set()"
