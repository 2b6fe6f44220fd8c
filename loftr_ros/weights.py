"""Where a network's weights are when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

from loftr_ros.matcher.checkpoint import WeightsError

VARIABLE = "LOFTR_ROS_WEIGHTS"
# Beside a checkout of the project: real data for its tests, with the published low-end weights among it.
_BESIDE_THE_PROJECT = {"coarse_lite": Path("../shared/data/coarse_loftr/LoFTR_teacher.pt")}


def find_weights(network: str, given: str = "") -> Path:
    """The weights file to use.

    Args:
        network: name of a preset.
        given: what the user said; empty to look in the environment's LOFTR_ROS_WEIGHTS, then beside the project.

    Raises:
        WeightsError: none is there; the message says what to do.
    """
    if given or os.environ.get(VARIABLE):
        path = Path(given or os.environ[VARIABLE]).expanduser()
        if not path.is_file():
            raise WeightsError(f"weights file {path} is not there; give an existing file")
        return path
    beside = _BESIDE_THE_PROJECT.get(network)
    if beside is not None and beside.is_file():
        return beside.resolve()
    raise WeightsError(
        f"network '{network}' comes without weights; give a weights file by --weights, or by the environment variable "
        f"{VARIABLE}. For coarse_lite that is LoFTR_teacher.pt of Coarse_LoFTR_TRT"
    )
