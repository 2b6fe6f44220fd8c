"""Optional packages: what errors say if one is missing."""

from __future__ import annotations

from importlib.util import find_spec

# Extras of setup.py, and the packages that pip installs for them.
_PACKAGES = {
    "archive": "'lancedb>=0.40,<1' pyarrow",
    "backend": "'gtsam>=4.3'",
    "localisation": "'pycolmap>=3.13' 'h5py>=3'",
    "plot": "matplotlib",
    "train": "'pytorch-lightning>=2.4,<2.7' tensorboard",
    "video": "av",
    "view": "'rerun-sdk>=0.23'",
}


def how_to_install(extra: str) -> str:
    """The command that installs an extra, for the end of an error."""
    return f"`pip install 'loftr_ros[{extra}]'`, or beside a colcon build `pip install {_PACKAGES[extra]}`"


def why_no_plots() -> str:
    """Why nothing can be plotted, and what to do; empty if matplotlib is installed."""
    return "" if find_spec("matplotlib") is not None else f"matplotlib is not installed: {how_to_install('plot')}"
