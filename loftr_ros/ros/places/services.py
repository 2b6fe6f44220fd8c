"""Services of the archive: save, load, match two keyframes, localise an image.

The work is done on the thread that owns the archive. The executor, which receives images, only accepts the request and
sends the response.
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
    """An invalid request. The message says what to change."""


class PlaceServices:
    """The services, for the node's whole life. Without an archive their response says why there is none."""

    def __init__(self, node: LifecycleNode, places: Callable[[], Places | None]) -> None:
        """Create the services.

        Args:
            node: the owner; its parameters are declared.
            places: returns the current archive; None without one. Called on the executor's thread.
        """
        self._node = node
        self._places = places
        # Separate from the node's other callbacks, which must not wait for the answer to a request.
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
        """Destroy the services; not while one of them is working."""
        for service in self._services:
            self._node.destroy_service(service)
        self._services = []

    def _callback(self, kind: type, work: Callable[[Places, Any, Any], None]) -> Callable[[Any, Any], Any]:
        """The callback for rclpy, which awaits only declared coroutines."""

        async def callback(request: Any, _: Any) -> Any:
            return await self._answer(kind, work, request)

        return callback

    async def _answer(self, kind: type, work: Callable[[Places, Any, Any], None], request: Any) -> Any:
        """Answer a request on the thread of the archive, while the executor continues.

        Args:
            kind: of the response.
            work: fills a response; an exception becomes the response's message.
            request: of the service.
        """
        places, executor = self._places(), self._node.executor
        if places is None:
            return _refusal(kind, _without_archive(self._node.get_parameter("archive.uri").value))
        response = kind()
        done = Future(executor=executor)
        answer = places.recognition.submit(lambda: work(places, request, response))

        def wake(_: Any) -> None:
            done.set_result(None)
            # Up to Kilted at least, a completed future does not wake the executor that awaits it.
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
        response.message = f"{response.num_keyframes} keyframes imported from '{uri}'; now there are {len(archive)}"

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
    """The image of a request, decoded like the node's camera images.

    Args:
        request: with one image, and with its calibration or zeros.
        parameters: the node's input parameters. The mask is used if the image has its size.

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
        raise RequestError(f"expected one image, but {how}; fill one of them and leave the other empty")
    return raw if has_raw else compressed


def _refusal(kind: type, message: str) -> Any:
    """A response with the reason of a failure and no results."""
    response = kind(message=message)
    if isinstance(response, MatchKeyframes.Response):
        response.relative_pose = no_match()
    return response


def _without_archive(uri: str) -> str:
    if not uri:
        return "parameter archive.uri is empty: there is no archive; set it before the node is configured"
    return f"the archive '{uri}' is not open: the node is not configured, or could not open it and has logged why"


def _place(uri: str, field: str) -> str:
    """The absolute place of an archive, for the response."""
    if not uri:
        raise RequestError(f"{field} is empty; name a folder, or s3://bucket/folder")
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _queries(places: Places) -> PlaceQuery:
    from loftr_ros.places.query import PlaceQuery

    return PlaceQuery(places.recognition.detector, places.descriptor)
