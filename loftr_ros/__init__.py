"""loftr_ros: LoFTR correspondences and relative poses for robots, as a ROS 2 front end."""

import os

# Before torch is imported, anywhere: OpenMP reads it once. Its threads wait for each other by computing, on cores that
# others need; beside one busy process, matching takes five times as long. What the user sets holds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
