"""Places: an archive of keyframes on disk, and what finds the camera's place among them.

It stands on the front end (`loftr_ros.frontend`) and knows nothing of ROS.
"""
