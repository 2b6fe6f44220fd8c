"""Video files, by OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from loftr_ros.frontend.camera import CameraModel
from loftr_ros.sources.base import (
    FIRST_STAMP_NS,
    FRAME_ID,
    PixelImage,
    Source,
    SourceError,
    SourceFrame,
    SourceOptions,
    stamp_at,
)


class VideoSource(Source):
    """The frames of a video, with the container's times as stamps (the first frame is at one second)."""

    kind = "video"

    def __init__(self, path: Path, options: SourceOptions, camera: CameraModel | None = None) -> None:
        """Opens the file once to see that it is a video.

        Raises:
            SourceError: OpenCV cannot read it, or `camera` is for another size.
        """
        self.name, self.camera = path.name, camera
        self._path, self._options = path, options
        capture = self._open()
        fps = capture.get(cv2.CAP_PROP_FPS)
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        capture.release()
        self._fps = fps if np.isfinite(fps) and 0 < fps <= 1000 else 30.0
        self.rate = (options.rate or self._fps) / options.step
        self.length = len(options.indices(total)) if total > 0 else None
        if self.length == 0:
            raise SourceError(f"{path} has {total} frames; start {options.start} is past the last")
        if camera is not None and (camera.width, camera.height) != size:
            raise SourceError(
                f"the calibration is for {camera.width}x{camera.height}, but {path} is {size[0]}x{size[1]}; "
                "give the right one with the option `camera`"
            )

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self._path))
        # Calibrations know nothing of a player's wish to turn the picture.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        if not capture.isOpened():
            raise SourceError(
                f"{self._path} is no video that OpenCV can read, and no bag (.mcap, .db3, .bag); "
                "give a folder of images, a bag, or a video in a common format such as mp4"
            )
        return capture

    def __iter__(self) -> Iterator[SourceFrame]:
        capture = self._open()
        try:
            index, last = -1, -1
            while capture.grab():
                index += 1
                stamp = FIRST_STAMP_NS + round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                if stamp <= last:  # some containers have no times: then the frame rate gives them
                    stamp = max(stamp_at(index, self._fps), last + 1)
                last = stamp
                if self._options.stop is not None and index >= self._options.stop:
                    return
                if not self._options.chooses(index):
                    continue
                done, pixels = capture.retrieve()
                if not done:
                    raise SourceError(f"frame {index} of {self._path} cannot be decoded; the file is damaged")
                own = self._options.stamp(index)
                image = PixelImage(np.asarray(pixels, np.uint8))
                yield SourceFrame(index, stamp if own is None else own, FRAME_ID, image, self.camera)
            if index < 0:
                raise SourceError(f"{self._path} has no frame that OpenCV can decode")
        finally:
            capture.release()
