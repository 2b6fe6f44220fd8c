"""Place recognition: an archive of keyframes on disk, and the search for places in it.

It builds on the front end (`loftr_ros.frontend`) and does not import ROS.
"""
