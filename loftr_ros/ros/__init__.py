"""The ROS 2 shell: parameters, conversion, publishing."""
