"""Lifecycle transitions that report why they fail."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Protocol, TypeVar

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from loftr_ros.ros.output.reports import ErrorLog, error_kind


class Reporting(Protocol):
    """A node that reports its failures.

    Attributes:
        errors: logs and counts them.
        failure: why the last transition failed; empty if it did not.
        in_transition: whether one is in progress.
    """

    errors: ErrorLog
    failure: str
    in_transition: bool


NodeT = TypeVar("NodeT", bound=Reporting)
Transition = Callable[[NodeT, LifecycleState], TransitionCallbackReturn]


def reported(method: Transition[NodeT]) -> Transition[NodeT]:
    """Log an exception of a transition and return FAILURE; rclpy would swallow it and return ERROR."""

    @functools.wraps(method)
    def guarded(self: NodeT, state: LifecycleState) -> TransitionCallbackReturn:
        self.in_transition = True
        try:
            result = method(self, state)
            if result == TransitionCallbackReturn.SUCCESS:
                self.failure = ""
        except Exception as error:
            kind = error_kind(error)
            self.failure = f"{method.__name__.removeprefix('on_')} failed: {error}"
            self.errors.error(kind, self.failure, traceback.format_exc() if kind == "internal" else "", always=True)
            result = TransitionCallbackReturn.FAILURE
        finally:
            self.in_transition = False
        return result

    return guarded
