"""What the examples' launch files take from `launch` and `launch_ros`, noted down instead of done.

PyPI has no `launch`: with this their topics and arguments are tested where no ROS is installed. `test_launch.py` runs
them by the real one where it is there.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

MODULES = {
    "launch": ("LaunchContext", "LaunchDescription", "LaunchDescriptionEntity"),
    "launch.actions": ("DeclareLaunchArgument", "GroupAction", "IncludeLaunchDescription", "OpaqueFunction"),
    "launch.substitutions": ("LaunchConfiguration", "PathJoinSubstitution"),
    "launch_ros": (),
    "launch_ros.actions": ("Node",),
    "launch_ros.substitutions": ("FindPackageShare",),
}


class Noted(SimpleNamespace):
    """An action or a substitution: `args` and `kwargs` it was made with, and what it is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(args=args, kwargs=kwargs)

    def perform(self, context: dict[str, str]) -> str:
        """A LaunchConfiguration's value."""
        return context[self.args[0]]


def install(monkeypatch: Any) -> None:
    """Put the stand-ins where the launch files import them from."""
    for name, classes in MODULES.items():
        module = ModuleType(name)
        for each in classes:
            setattr(module, each, type(each, (Noted,), {}))
        monkeypatch.setitem(sys.modules, name, module)
