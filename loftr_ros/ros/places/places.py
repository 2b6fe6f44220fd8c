"""Archive and loop search in the node, beside the front end and without blocking it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rclpy.lifecycle import LifecycleNode

from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.msg import LoopClosure
from loftr_ros.ros.output.reports import ErrorLog, PlacesState, error_kind
from loftr_ros.ros.parameters import Parameters
from loftr_ros.ros.places.conversion import loop_closure_message
from loftr_ros.ros.places.fleet import Fleet
from loftr_ros.ros.spare_time import LentMatcher, one_torch_thread_here

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    from loftr_ros.frontend.pipeline import FrontEnd, FrontEndResult
    from loftr_ros.places import detector
    from loftr_ros.places.archive import Archive
    from loftr_ros.places.config import ArchiveConfig
    from loftr_ros.places.descriptor import PlaceDescriptor
    from loftr_ros.places.detector import LoopDetector
    from loftr_ros.places.keyframe import ArchivedKeyframe
    from loftr_ros.ros.output.outputs import Outputs


def robot_name(node: LifecycleNode, given: str) -> str:
    """The robot's name: from the parameter, else from the node's namespace, else `robot`."""
    return given or node.get_namespace().strip("/") or "robot"


class Places:
    """Opens the archive, passes results to the thread that searches it, and publishes the loops found.

    Attributes:
        robot: name of the robot.
        recognition: the thread.
        descriptor: of the network's features; any thread may use it.
        observer: extracts keyframes from the front end's results, on the front end's thread.
    """

    def __init__(
        self,
        node: LifecycleNode,
        parameters: Parameters,
        front_end: FrontEnd,
        lent: LentMatcher,
        call: Callable[[Callable[[FrontEnd, Outputs], object]], None],
        publisher: Callable[[type, str], Any],
        errors: ErrorLog,
    ) -> None:
        """Open the archive and start the thread. The front end continues the keyframe numbers of the archive.

        Args:
            node: the owner.
            parameters: the node's; `archive.uri` is not empty.
            front_end: the node's, before its first frame.
            lent: the front end's network, lent by threads that outlive this.
            call: runs a command on the front end, between two frames.
            publisher: creates a lifecycle publisher for a message type and a topic; its owner destroys it.
            errors: logs and counts failures.

        Raises:
            PlacesError: the archive cannot be opened.
        """
        from loftr_ros.places.descriptor import PlaceDescriptor
        from loftr_ros.places.recognition import PlaceRecognition
        from loftr_ros.places.view import Observer

        self.robot = robot_name(node, parameters.robot.robot_name)
        self._errors = errors
        self._is_alive = node.context.ok
        self._fleet: Fleet | None = None
        self._spare, self._call = lent.spare, call
        self._closures = publisher(LoopClosure, "~/loop_closures")
        self.descriptor = descriptor = PlaceDescriptor.of(front_end.matcher)
        self.recognition = PlaceRecognition(
            lambda: self._load(parameters, descriptor, lent),
            parameters.archive,
            self._on_closure,
            self._on_archived,
            self._on_error,
            self._on_known,
            self._set_urgent,
        )
        try:
            archive = self.recognition.detector.archive
            self.observer = Observer(descriptor, self.robot, archive.last_session(self.robot) + 1)
            front_end.buffer.next_id = max(front_end.buffer.next_id, archive.last_id(self.robot) + 1)
            if parameters.fleet.share:
                self._fleet = Fleet(
                    node,
                    self.recognition,
                    self.robot,
                    descriptor.space,
                    parameters.fleet.topic,
                    parameters.fleet.fetch_timeout,
                    self._on_error,
                    self._errors.count,
                )
        except BaseException:
            self.close()
            raise
        node.get_logger().info(
            f"archive {parameters.archive.uri}: {len(archive)} keyframes, {archive.size_bytes / 1e6:.1f} MB"
            + (" (read-only: new keyframes are not stored)" if archive.is_read_only else "")
            + f"; this robot is '{self.robot}', its next keyframe number {front_end.buffer.next_id}"
        )

    def observe(self, result: FrontEndResult) -> None:
        """Process a frame's result and features, on the front end's thread; never blocks."""
        self.recognition.put(*self.observer.observe(result, result.encoded), result.encoded)

    def restart(self) -> None:
        """The front end was reset; a new stream begins."""
        finished = self.observer.restart()
        if finished is not None:
            self.recognition.archive(finished)

    def reconfigure(self, parameters: Parameters) -> None:
        """Use other live parameters."""
        detector = self.recognition.detector
        detector.config = parameters.loop
        detector.verifier.pairs.config = parameters.front_end
        self._spare.max_load = parameters.loop.max_load

    def close(self) -> None:
        """Archive the last keyframe, end the thread and close the archive."""
        observer = getattr(self, "observer", None)
        last = observer.take() if observer is not None else None
        if last is not None:
            self.recognition.archive(last)
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.close()  # first, because the thread may be waiting for another robot
        self.recognition.stop()
        self.recognition.detector.archive.close()

    @property
    def state(self) -> PlacesState:
        """The state for the status message."""
        counts = self.recognition.counts
        return PlacesState(
            archived_keyframes=counts.held,
            archive_bytes=counts.held_bytes,
            keyframes_lost=counts.lost,
            places_searched=counts.searched,
            places_skipped=counts.skipped,
            loop_closures=counts.closures,
            session=self.observer.session,
        )

    def _load(self, parameters: Parameters, descriptor: PlaceDescriptor, lent: LentMatcher) -> LoopDetector:
        """Runs on the thread that will own all of it."""
        from loftr_ros.places.detector import LoopDetector
        from loftr_ros.places.verification import Verifier

        one_torch_thread_here()
        self._spare.max_load = parameters.loop.max_load
        verifier = Verifier(PairMatcher(lent, parameters.front_end), lent.geometry)
        fetch = self._fetch if parameters.fleet.share else None
        return LoopDetector(self._open(parameters.archive, descriptor), verifier, parameters.loop, fetch)

    def _open(self, wanted: ArchiveConfig, descriptor: PlaceDescriptor) -> Archive:
        """Open the archive, read-only if it is not writable."""
        from loftr_ros.places.archive import Archive
        from loftr_ros.places.keyframe import PlacesError

        try:
            return Archive.open(wanted.uri, descriptor.space, descriptor.dimension, max_size_mb=wanted.max_size_mb)
        except PlacesError as error:
            if error.kind != "archive_read_only":
                raise
            archive = Archive.open(wanted.uri, descriptor.space, descriptor.dimension, read_only=True)
            self._errors.error(error.kind, f"{error}. It is searched, but new keyframes are not stored", always=True)
            return archive

    def _fetch(self, keyframe: ArchivedKeyframe) -> ArchivedKeyframe | None:
        return None if self._fleet is None else self._fleet.fetch(keyframe)

    def _on_closure(self, closure: detector.LoopClosure) -> None:
        self._closures.publish(loop_closure_message(closure))

    def _set_urgent(self, is_urgent: bool) -> None:
        self._spare.is_urgent = is_urgent

    def _on_known(self, keyframe: ArchivedKeyframe) -> None:
        """The front end is lost, and the archive knows the place: recall that keyframe for the next frames."""

        def recall(front_end: FrontEnd, outputs: Outputs) -> None:
            if front_end.recall(keyframe.name.id, keyframe.to_frame(), keyframe.depth, keyframe.grid):
                outputs.publish_events(front_end.buffer.take_events(), None)

        self._call(recall)

    def _on_archived(self, keyframe: ArchivedKeyframe) -> None:
        if self._fleet is not None:
            self._fleet.announce(keyframe)

    def _on_error(self, error: Exception) -> None:
        if not self._is_alive():
            return  # the context was shut down before the publishers: not a failure
        kind = error_kind(error)
        self._errors.error(kind, str(error) or type(error).__name__, _details(error) if kind == "internal" else "")


def _details(error: Exception) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))
