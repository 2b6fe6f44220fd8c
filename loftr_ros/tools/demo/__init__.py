"""`loftr_ros demo`: the real node and a real publisher over DDS, and a report."""

from loftr_ros.tools.demo.run import run_demo

__all__ = ["run_demo"]
