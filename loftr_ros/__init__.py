"""loftr_ros: LoFTR correspondences and relative poses for robots, as a ROS 2 front end."""
