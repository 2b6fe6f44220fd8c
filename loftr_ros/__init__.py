"""loftr_ros: LoFTR correspondences and relative poses for robots, as a ROS 2 front end."""

import os

# Torch's OpenMP threads wait for each other by spinning, and beside other busy processes they spin for one that has no
# core: matching then takes five times as long. OpenMP reads this once, when torch is loaded; what the user set holds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"})
