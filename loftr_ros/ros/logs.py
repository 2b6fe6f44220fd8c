"""Forwards log records of the modules without ROS to the node's logger, and warnings that are not repeated."""

from __future__ import annotations

import logging
from typing import Any


class _ToNode(logging.Handler):
    def __init__(self, logger: Any) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # Separate calls: rclpy requires one severity per logging call site.
        if record.levelno >= logging.ERROR:
            self._logger.error(message)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(message)
        else:
            self._logger.info(message)


def log_by(logger: Any) -> None:
    """Forward the package's Python log records to a node's logger, from INFO on."""
    package = logging.getLogger("loftr_ros")
    for handler in [each for each in package.handlers if isinstance(each, _ToNode)]:
        package.removeHandler(handler)
    package.addHandler(_ToNode(logger))
    package.setLevel(logging.INFO)
    package.propagate = False


class Warnings:
    """Logs a warning unless it is the same as the last one."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._said = ""

    def __call__(self, words: str) -> None:
        """Log it, if it is new."""
        if words != self._said:
            self._said = words
            self._logger.warning(words)
