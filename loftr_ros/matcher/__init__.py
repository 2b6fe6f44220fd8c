"""The LoFTR networks: torch only, no ROS, no OpenCV, no file formats but weights."""

import os

# Before torch is imported. OpenMP's threads wait for more work at full speed, for milliseconds, on cores that other
# threads need: OpenVINO's, the camera driver's. A tenth of a millisecond is enough between a network's operations.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
