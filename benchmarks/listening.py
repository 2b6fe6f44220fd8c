"""A node of a benchmark's own, in a DDS domain of its own, that hears what the processes beside it say."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loftr_ros.tools.domains import own_domain

BIN = Path(sys.executable).parent
# `ros2 launch` without its script, which needs the folder that it was installed to on the path.
ROS2_LAUNCH = [sys.executable, "-P", "-c", "from ros2cli.cli import main; exit(main())", "launch"]


@contextmanager
def listening(name: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """Let a node hear, in a thread of its own.

    Args:
        name: of the node.

    Yields:
        The node, and the environment for processes of the same domain.
    """
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    with own_domain() as domain:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        node = rclpy.create_node(name, context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        hearing = threading.Thread(target=executor.spin, daemon=True)
        hearing.start()
        try:
            path = f"{BIN}:{os.environ['PATH']}"
            yield node, dict(os.environ, ROS_DOMAIN_ID=str(domain), PATH=path)
        finally:
            executor.shutdown()
            hearing.join(timeout=10)
            node.destroy_node()
            context.try_shutdown()
