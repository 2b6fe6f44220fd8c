#!/bin/bash
# ROS 2, and the environment that loftr_ros is in beside it.
set -e
. "/opt/ros/$ROS_DISTRO/setup.bash"
export PATH="/opt/loftr_ros/bin:$PATH"
export AMENT_PREFIX_PATH="/opt/loftr_ros:$AMENT_PREFIX_PATH"
# For programs of the system's Python, such as `ros2 topic echo /loftr_front_end/status`.
export LD_LIBRARY_PATH="/opt/loftr_ros/lib:$LD_LIBRARY_PATH"
for packages in /opt/loftr_ros/lib/python3*/site-packages; do
    export PYTHONPATH="$packages:$PYTHONPATH"
done
exec "$@"
