"""The back end: smoothing of the last keyframes and the pose graph of all, by GTSAM. Knows no ROS."""
