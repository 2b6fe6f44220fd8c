"""The LoFTR networks: torch only, no ROS, no OpenCV, no file formats but weights."""
