#!/usr/bin/env python3
"""The smallest node that uses the front end: it prints the pose of each image relative to its keyframe.

    loftr_ros node &                      # or: ros2 launch loftr_ros front_end.launch.py image:=/camera/image_raw
    python3 consumer.py
    loftr_ros play walk.mp4 --camera phone.yaml

Start your own node from this file: take other topics of docs/downstream.md in place of `relative_pose`.
"""

from __future__ import annotations

import sys

import rclpy
from loftr_ros.msg import RelativePose
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

# With a rotation and a direction. The second may be one of two solutions, the third is less accurate.
WITH_POSE = (RelativePose.OK, RelativePose.PLANAR, RelativePose.CONCENTRATED)


class Consumer(Node):
    """Subscribes to the front end's relative poses."""

    def __init__(self) -> None:
        super().__init__("consumer")
        # The front end publishes reliably and keeps ten messages; this default profile fits it.
        self.create_subscription(RelativePose, "loftr_front_end/relative_pose", self.on_pose, 10)

    def on_pose(self, message: RelativePose) -> None:
        """Print one pose: T_keyframe_current, in the keyframe camera's optical axes (x right, y down, z forward)."""
        if message.status not in WITH_POSE:
            self.get_logger().info(f"keyframe {message.keyframe_id}: no good pose (status {message.status})")
            return
        at = message.pose.pose.position
        unit = "m" if message.scale_known else "(direction only)"
        self.get_logger().info(
            f"keyframe {message.keyframe_id}: moved by {at.x:+.3f} {at.y:+.3f} {at.z:+.3f} {unit}, "
            f"{message.num_inliers} of {message.num_matches} matches agree"
        )


def main() -> None:
    """Run the node until Ctrl-C."""
    rclpy.init(args=sys.argv)
    try:
        rclpy.spin(Consumer())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
