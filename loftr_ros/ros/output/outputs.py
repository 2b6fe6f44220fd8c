"""Publishers of the front end's results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, PointCloud2

from loftr_ros.frontend.frame import Frame
from loftr_ros.msg import Correspondences, Keyframe, RelativePose, SegmentsJoined, TrackLinks, Tracks
from loftr_ros.ros.output.messages import (
    correspondences_message,
    image_message,
    keyframe_message,
    landmarks_message,
    relative_pose_message,
    segments_joined_message,
    track_links_message,
    tracks_message,
)
from loftr_ros.ros.output.odometry import OdometryOutput
from loftr_ros.ros.parameters import OdometryParameters

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    from loftr_ros.frontend.keyframes import KeyframeEvent
    from loftr_ros.frontend.pipeline import FrontEndResult

# Topics whose last messages a subscriber gets that comes later, and how many: a back end that was started again misses
# no keyframe.
KEPT = {"~/keyframe": 1000, "~/loop_closures": 1000}


class Outputs:
    """The lifecycle publishers: silent until the node is active."""

    def __init__(self, node: LifecycleNode, max_lines: int, odometry: OdometryParameters) -> None:
        self._node = node
        self.max_lines = max_lines
        self._publishers: list[Any] = []
        self._odometry: OdometryOutput | None = None
        try:
            self._correspondences = self.publisher(Correspondences, "~/correspondences")
            self._relative_pose = self.publisher(RelativePose, "~/relative_pose")
            self._keyframe = self.publisher(Keyframe, "~/keyframe")
            self._tracks = self.publisher(Tracks, "~/tracks")
            self._track_links = self.publisher(TrackLinks, "~/track_links")
            self._segments_joined = self.publisher(SegmentsJoined, "~/segments_joined")
            self._landmarks = self.publisher(PointCloud2, "~/landmarks")
            self._matches_image = self.publisher(Image, "~/matches_image")
            self._odometry = OdometryOutput(node, odometry, self.publisher)
        except Exception:  # an invalid QoS override
            self.close()
            raise

    def publisher(self, kind: type, topic: str) -> Any:
        """Create a publisher: reliable, depth 10; `qos_overrides.<topic>.publisher.*` changes it.

        Keyframes and loops are kept for subscribers that come later (transient local): see `KEPT`.
        """
        # A new profile for each: rclpy writes the overrides into it.
        profile = QoSProfile(depth=10)
        if topic in KEPT:
            profile = QoSProfile(depth=KEPT[topic], durability=DurabilityPolicy.TRANSIENT_LOCAL)
        publisher = self._node.create_lifecycle_publisher(
            kind,
            topic,
            profile,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._publishers.append(publisher)
        return publisher

    def close(self) -> None:
        """Destroy the publishers."""
        if self._odometry is not None:
            self._odometry.close()
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = []

    def publish(self, result: FrontEndResult) -> None:
        """Publish everything except visualisation."""
        assert self._odometry is not None
        # A keyframe of an earlier frame is announced before what refers to it.
        is_earlier = any(event.added and event.keyframe.frame is not result.frame for event in result.events)
        if is_earlier:
            self.publish_events(result.events, result.frame)
        for match in result.matches:
            self._correspondences.publish(correspondences_message(match, result.frame))
            self._relative_pose.publish(relative_pose_message(match, result.frame))
        # Only with subscribers, because the rays of the pixels take time.
        if result.matches and self._tracks.get_subscription_count():
            self._tracks.publish(tracks_message(result.matches[0], result.frame))
        if result.matches and self._landmarks.get_subscription_count():
            self._landmarks.publish(landmarks_message(result.matches[0], result.frame, result.location))
        added = {event.keyframe.id: event.keyframe.frame for event in result.events if event.added}
        for links in result.links:
            if len(links):
                self._track_links.publish(track_links_message(links, added.get(links.new_keyframe, result.frame)))
        if result.joined is not None:
            self._segments_joined.publish(segments_joined_message(result.joined, result.frame))
            self._node.get_logger().info(
                f"segments {result.joined.old} and {result.joined.new} of the trajectory are one: "
                f"it continues in segment {result.joined.old} (see ~/segments_joined)"
            )
        if not is_earlier:
            self.publish_events(result.events, result.frame)
        self._odometry.publish(result)

    def publish_events(self, events: tuple[KeyframeEvent, ...], current: Frame | None) -> None:
        """Publish the keyframes added and removed."""
        assert self._odometry is not None
        for event in events:
            self._keyframe.publish(keyframe_message(event, current))
        if any(event.reason == Keyframe.RESET for event in events):
            self._odometry.restart()

    def publish_picture(self, result: FrontEndResult) -> None:
        """Publish visualisations, only with subscribers: the path, and the matches with the reference keyframe."""
        assert self._odometry is not None
        self._odometry.publish_path()
        if not result.matches or not self._matches_image.get_subscription_count():
            return
        from loftr_ros.evaluation.drawing import draw_matches

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
            max_lines=self.max_lines,
        )
        self._matches_image.publish(image_message(picture, result.frame))
