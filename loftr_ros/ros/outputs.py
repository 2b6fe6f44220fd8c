"""Publishers of the front end's results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image

from loftr_ros.frontend.frame import Frame
from loftr_ros.msg import Correspondences, Keyframe, RelativePose
from loftr_ros.ros.messages import (
    correspondences_message,
    image_message,
    keyframe_message,
    relative_pose_message,
)

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    from loftr_ros.frontend.keyframes import KeyframeEvent
    from loftr_ros.frontend.pipeline import FrontEndResult


class Outputs:
    """The lifecycle publishers: silent until the node is active."""

    def __init__(self, node: LifecycleNode, max_lines: int) -> None:
        self._node = node
        self._max_lines = max_lines
        self._publishers: list[Any] = []
        try:
            self._correspondences = self._publisher(Correspondences, "~/correspondences")
            self._relative_pose = self._publisher(RelativePose, "~/relative_pose")
            self._keyframe = self._publisher(Keyframe, "~/keyframe")
            self._matches_image = self._publisher(Image, "~/matches_image")
        except Exception:  # a QoS override that is none
            self.close()
            raise

    def _publisher(self, kind: type, topic: str) -> Any:
        """Reliable, the last 10; `qos_overrides.<topic>.publisher.*` changes it."""
        # A profile for each: rclpy writes the overrides into the one that it is given.
        publisher = self._node.create_lifecycle_publisher(
            kind,
            topic,
            QoSProfile(depth=10),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._publishers.append(publisher)
        return publisher

    def close(self) -> None:
        """Take the topics away."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = []

    def publish(self, result: FrontEndResult) -> None:
        """Everything but the picture."""
        for match in result.matches:
            self._correspondences.publish(correspondences_message(match, result.frame))
            self._relative_pose.publish(relative_pose_message(match, result.frame))
        self.publish_events(result.events, result.frame)

    def publish_events(self, events: tuple[KeyframeEvent, ...], current: Frame | None) -> None:
        """Keyframes that came and went."""
        for event in events:
            self._keyframe.publish(keyframe_message(event, current))

    def publish_picture(self, result: FrontEndResult) -> None:
        """The matches with the reference keyframe, drawn only while someone looks."""
        if not result.matches or not self._matches_image.get_subscription_count():
            return
        from loftr_ros.visualization import draw_matches

        match = result.matches[0]
        found, pose = match.correspondences, match.pose
        text = f"keyframe {match.keyframe.id}: {int(pose.inliers.sum())}/{len(found)} inliers, {pose.status.name}" + (
            f", parallax {pose.median_parallax:.1f} px" if np.isfinite(pose.median_parallax) else ""
        )
        picture = draw_matches(
            match.keyframe.frame.image,
            result.frame.image,
            found.keyframe_points,
            found.current_points,
            found.confidence,
            pose.inliers,
            text=text,
            max_lines=self._max_lines,
        )
        self._matches_image.publish(image_message(picture, result.frame))
