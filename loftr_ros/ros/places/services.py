"""Services of the archive: save, load, match two keyframes, ask where an image was taken.

The work is done on the thread that owns the archive. The executor, which images come through, only takes the request
and sends the answer.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.mask import read_mask
from loftr_ros.places.keyframe import KeyframeName
from loftr_ros.recordings.frame_decoder import Arrival, FrameDecoder
from loftr_ros.ros.output.reports import error_kind
from loftr_ros.ros.parameters import InputParameters, read
from loftr_ros.ros.places.conversion import fill_match, no_match, place_message
from loftr_ros.srv import LoadArchive, MatchKeyframes, Query, SaveArchive

if TYPE_CHECKING:  # these import torch, which the node loads when it is configured
    from loftr_ros.places.query import PlaceQuery
    from loftr_ros.ros.places.places import Places


class RequestError(ValueError):
    """A request that cannot be answered as it is; the message says what to change."""


class PlaceServices:
    """The services, from the node's start to its end; without an archive their answer says why there is none."""

    def __init__(self, node: LifecycleNode, places: Callable[[], Places | None]) -> None:
        """Offer the services.

        Args:
            node: whose; its parameters are declared.
            places: the archive as it is now; None without one. Called on the executor's thread.
        """
        self._node = node
        self._places = places
        # Apart from the node's other callbacks, which must not wait until a request is answered.
        group = ReentrantCallbackGroup()
        self._services = [
            node.create_service(kind, name, self._callback(kind.Response, work), callback_group=group)
            for kind, name, work in (
                (SaveArchive, "~/save_archive", self._save),
                (LoadArchive, "~/load_archive", self._load),
                (MatchKeyframes, "~/match_keyframes", self._match),
                (Query, "~/query", self._query),
            )
        ]

    def close(self) -> None:
        """Take the services away; not while one of them is at work."""
        for service in self._services:
            self._node.destroy_service(service)
        self._services = []

    def _callback(self, kind: type, work: Callable[[Places, Any, Any], None]) -> Callable[[Any, Any], Any]:
        """What rclpy is to call: it awaits only what says itself that it is a coroutine."""

        async def callback(request: Any, _: Any) -> Any:
            return await self._answer(kind, work, request)

        return callback

    async def _answer(self, kind: type, work: Callable[[Places, Any, Any], None], request: Any) -> Any:
        """Have a request answered on the thread of the archive, while the executor goes on.

        Args:
            kind: of the response.
            work: fills a response; what it raises is the answer then.
            request: whatever the service takes.
        """
        places, executor = self._places(), self._node.executor
        if places is None:
            return _refusal(kind, _without_archive(self._node.get_parameter("archive.uri").value))
        response = kind()
        done = Future(executor=executor)
        answer = places.recognition.submit(lambda: work(places, request, response))

        def wake(_: Any) -> None:
            done.set_result(None)
            # Up to Kilted at least, a future that is done does not wake the executor that awaits it.
            if self._node.context.ok():
                executor.wake()

        answer.add_done_callback(wake)
        await done
        error = answer.exception()
        if error is None:
            response.success = True
            return response
        message = str(error) or type(error).__name__
        if isinstance(error, Exception) and not isinstance(error, RequestError) and error_kind(error) == "internal":
            details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self._node.get_logger().error(f"[internal] a service of the archive failed: {details}")
            message = f"{type(error).__name__}: {message} (see the node's log)"
        return _refusal(kind, message)

    # --- on the thread of the archive ---

    def _save(self, places: Places, request: SaveArchive.Request, response: SaveArchive.Response) -> None:
        path = _place(request.path, "path")
        response.num_keyframes = places.recognition.detector.archive.save(path)
        response.message = f"{response.num_keyframes} keyframes copied to '{path}'"

    def _load(self, places: Places, request: LoadArchive.Request, response: LoadArchive.Response) -> None:
        from loftr_ros.places.query import take_over

        uri, descriptor = _place(request.uri, "uri"), places.descriptor
        archive, session = places.recognition.detector.archive, places.observer.session
        response.num_keyframes = take_over(archive, uri, places.robot, session, descriptor.space, descriptor.dimension)
        response.message = f"{response.num_keyframes} keyframes taken over from '{uri}'; there are {len(archive)} now"

    def _match(self, places: Places, request: MatchKeyframes.Request, response: MatchKeyframes.Response) -> None:
        matched = _queries(places).match(
            KeyframeName(request.robot or places.robot, int(request.keyframe_id)),
            KeyframeName(request.other_robot or places.robot, int(request.other_keyframe_id)),
        )
        fill_match(response, matched)

    def _query(self, places: Places, request: Query.Request, response: Query.Response) -> None:
        frame = asked_frame(request, read(self._node).input)
        found = _queries(places).rank(frame, int(request.max_places))
        response.places = [place_message(place) for place in found]


def asked_frame(request: Query.Request, parameters: InputParameters) -> Frame:
    """The image that a request asks about, as the node would decode one of its camera's.

    Args:
        request: with one image, and with its calibration or zeros.
        parameters: what the node's images are. The mask is used where the image has its size.

    Raises:
        RequestError: there is no image, or there are two.
        ImageError, CameraError: the image cannot be decoded, or its calibration not be used.
    """
    calibration = request.camera_info.p if parameters.rectified else request.camera_info.k
    info: CameraInfo | None = request.camera_info if np.any(calibration) else None
    frame = FrameDecoder(parameters)(Arrival(_the_image(request), info, time.monotonic()))
    if parameters.mask:
        usable = read_mask(Path(parameters.mask).expanduser())
        if usable.shape == frame.image.shape:
            return replace(frame, usable=usable)
    return frame


def _the_image(request: Query.Request) -> Image | CompressedImage:
    raw, compressed = request.image, request.compressed_image
    has_raw = bool(len(raw.data) or raw.width or raw.height or raw.encoding)
    has_compressed = bool(len(compressed.data) or compressed.format)
    if has_raw == has_compressed:
        how = "both image and compressed_image hold one" if has_raw else "neither image nor compressed_image holds one"
        raise RequestError(f"one image is asked for, and {how}; fill one of them and leave the other empty")
    return raw if has_raw else compressed


def _refusal(kind: type, message: str) -> Any:
    """A response that says why there is none; it claims nothing of what it should have told."""
    response = kind(message=message)
    if isinstance(response, MatchKeyframes.Response):
        response.relative_pose = no_match()
    return response


def _without_archive(uri: str) -> str:
    if not uri:
        return "parameter archive.uri is empty: there is no archive; set it before the node is configured"
    return f"the archive '{uri}' is not open: the node is not configured, or could not open it and has logged why"


def _place(uri: str, field: str) -> str:
    """Where an archive is, in full, so that the answer tells it."""
    if not uri:
        raise RequestError(f"{field} is empty; name a folder, or s3://bucket/folder")
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _queries(places: Places) -> PlaceQuery:
    from loftr_ros.places.query import PlaceQuery

    return PlaceQuery(places.recognition.detector, places.descriptor)
