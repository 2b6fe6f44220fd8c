"""What the rooms without ROS log reaches the node's logger."""

from __future__ import annotations

import logging
from typing import Any


class _ToNode(logging.Handler):
    def __init__(self, logger: Any) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # A line each: rclpy wants one severity of every place that logs.
        if record.levelno >= logging.ERROR:
            self._logger.error(message)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(message)
        else:
            self._logger.info(message)


def log_by(logger: Any) -> None:
    """Have a node's logger say what the package's Python loggers are told from now on, from INFO on."""
    package = logging.getLogger("loftr_ros")
    for handler in [each for each in package.handlers if isinstance(each, _ToNode)]:
        package.removeHandler(handler)
    package.addHandler(_ToNode(logger))
    package.setLevel(logging.INFO)
    package.propagate = False
