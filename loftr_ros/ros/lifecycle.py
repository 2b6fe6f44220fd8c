"""What both nodes have in common: parameters from settings, transitions that report why they fail, the program."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import traceback
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.task import Future

from loftr_ros.ros.logs import log_by
from loftr_ros.ros.output.reports import ErrorLog, error_kind
from loftr_ros.ros.output.statistics import Statistics
from loftr_ros.ros.parameter_names import all_floats, idle_files, unknown_parameters
from loftr_ros.ros.parameters import declare, defaults, live_parameters, read_as, refusal
from loftr_ros.settings import ConfigError, with_values


class WithOutput(Protocol):
    """Settings with the group `output`, which has `error_period`."""

    @property
    def output(self) -> Any:
        """The group."""


P = TypeVar("P", bound=WithOutput)


class SettingsNode(LifecycleNode, Generic[P]):
    """A lifecycle node whose parameters are declared from a settings class.

    A subclass does the work in `_configure`, `_activate`, `_deactivate`, `_free` and `_reconfigure`. If one of them
    raises, the transition fails, and log and status say why.

    Attributes:
        statistics: counts errors.
        errors: logs and counts them.
        lifecycle: name of the state.
        failure: why the last transition failed; empty if it did not.
        interruptible: whether a signal may interrupt what the node is doing: a transition that loads something.
        interrupted: set by that signal.
        given_up: done when the node cannot go on in this process; see `give_up`.
    """

    def __init__(self, name: str, kind: type[P], **kwargs: object) -> None:
        """Declare the parameters; `kwargs` are those of `LifecycleNode`.

        Raises:
            ParameterException, ConfigError: a parameter has an invalid value.
        """
        super().__init__(name, **kwargs)
        self._kind: type[P] = kind
        for service in self.services:
            if service.srv_name.endswith("/change_state"):
                service.callback = partial(self._change_state, service.callback)
        declare(self, kind)
        for warning in unknown_parameters(self):
            self.get_logger().warning(warning)
        self.statistics = Statistics(1)
        self.errors = ErrorLog(self, self.statistics, self.settings.output.error_period)
        self.lifecycle = "unconfigured"
        self.failure = ""
        self.interruptible = False
        self.interrupted = threading.Event()
        self.given_up = Future()
        self._giving_up = self.create_guard_condition(self._give_up)
        self._fault: tuple[str, str] | None = None
        self.add_on_set_parameters_callback(self._on_set_parameters)
        # Humble has no post-set callback; there parameters take effect as soon as they are accepted.
        self._acts_after = hasattr(self, "add_post_set_parameters_callback")
        if self._acts_after:
            self.add_post_set_parameters_callback(self._after_set_parameters)

    @property
    def settings(self) -> P:
        """The parameters' present values.

        Raises:
            ConfigError: one is not among its choices; the message names it.
        """
        return read_as(self, self._kind)

    # --- the work of a subclass ---

    @abstractmethod
    def _configure(self) -> None:
        """Load and prepare everything; after an exception `_free` is called."""

    @abstractmethod
    def _activate(self) -> None:
        """Subscribe; publishers are enabled afterwards."""

    @abstractmethod
    def _deactivate(self) -> None:
        """Unsubscribe and keep what was learned."""

    @abstractmethod
    def _free(self) -> None:
        """Free everything, in any state."""

    @abstractmethod
    def _reconfigure(self, settings: P) -> None:
        """Use other live parameters; called in the states inactive and active."""

    @abstractmethod
    def close(self) -> None:
        """End the threads, in any state; the node cannot be used afterwards."""

    def destroy_node(self) -> None:
        """As for every node, and the lifecycle's services with it.

        rclpy keeps them until the garbage is collected: clients would take them for those of a living node, and wait
        for an answer for ever.
        """
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    # --- faults after which only a new process helps ---

    def give_up(self, kind: str, message: str) -> None:
        """Go through the error state to finalized, and end the program; may be called from any thread."""
        if self._fault is None:
            self._fault = kind, message
            self._giving_up.trigger()

    def _give_up(self) -> None:
        assert self._fault is not None
        self.errors.error(*self._fault, always=True)
        if self.lifecycle == "active":
            self.trigger_deactivate()  # a lifecycle node has no other way to the error state
        else:
            self.given_up.set_result(self._fault[1])

    # --- transitions ---

    def _change_state(
        self, change: Callable[..., ChangeState.Response], request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Answer a request. One that the state has no transition for is refused; Jazzy's rclpy ends the process."""
        try:
            return change(request, response)
        except RuntimeError as error:  # rclpy's RCLError, which has no public name
            asked = request.transition.label or request.transition.id
            self.get_logger().warning(f"refused transition {asked} in the state {self.lifecycle}: {error}")
            response.success = False
            return response

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and prepare everything."""

        def work() -> None:
            try:
                self._configure()
            except Exception:
                self._free()
                raise

        return self._transition("configure", work, "inactive", interruptible=True)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start working."""

        def work() -> None:
            self._activate()
            for warning in unknown_parameters(self, qos=True):
                self.get_logger().warning(warning)
            # Last, since it cannot fail: it enables the publishers. No message comes while this callback runs.
            super(SettingsNode, self).on_activate(state)

        return self._transition("activate", work, "active", interruptible=True)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and keep what was learned."""

        def work() -> None:
            self._deactivate()
            super(SettingsNode, self).on_deactivate(state)

        result = self._transition("deactivate", work, "inactive")
        return TransitionCallbackReturn.ERROR if self._fault else result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        return self._transition("cleanup", self._free, "unconfigured")

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state."""
        return self._transition("shutdown", self._free, "finalized")

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured, from where configure may be tried again; after `give_up` to finalized."""
        if self._fault is None:
            return self._transition("error", self._free, "unconfigured")
        self._transition("error", self._free, "finalized")
        self.failure = self._fault[1]
        self.given_up.set_result(self.failure)
        return TransitionCallbackReturn.FAILURE

    def _transition(
        self, name: str, work: Callable[[], None], to: str, interruptible: bool = False
    ) -> TransitionCallbackReturn:
        """Log an exception and return FAILURE; rclpy would swallow it and return ERROR."""
        self.interruptible = interruptible
        try:
            work()
        except Exception as error:
            if self.interrupted.is_set():  # an import in C makes another exception of the interrupt
                raise KeyboardInterrupt from error
            kind = error_kind(error)
            self.failure = f"{name} failed: {error}"
            self.errors.error(kind, self.failure, traceback.format_exc() if kind == "internal" else "", always=True)
            return TransitionCallbackReturn.FAILURE
        finally:
            self.interruptible = False
        self.failure, self.lifecycle = "", to
        return TransitionCallbackReturn.SUCCESS

    # --- parameters ---

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in parameters}
        reason = refusal(values, self.lifecycle != "unconfigured", self._kind)
        if not reason:
            try:
                with_values(self.settings, values)
            except ConfigError as error:
                reason = str(error)
        if not reason and not self._acts_after:
            self._after_set_parameters(parameters)
        return SetParametersResult(successful=not reason, reason=reason)

    def _after_set_parameters(self, parameters: list[Parameter]) -> None:
        values = {parameter.name: parameter.value for parameter in parameters}
        live = live_parameters(self._kind)
        if self.lifecycle in ("inactive", "active") and any(live.get(name) for name in values):
            self._reconfigure(with_values(self.settings, values))

    def set_parameters(self, parameter_list: list[Parameter]) -> list[SetParametersResult]:
        """As for every node, but accepts whole numbers for floats."""
        return list(super().set_parameters(all_floats(parameter_list, defaults(self._kind))))

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """As for every node, but accepts whole numbers for floats; `ros2 param set` calls this."""
        return super().set_parameters_atomically(all_floats(parameter_list, defaults(self._kind)))


def run_node(
    make: Callable[[], SettingsNode[Any]], name: str, args: list[str] | None = None, autostart: bool = False
) -> int:
    """Run a node until it is asked to stop.

    Args:
        make: makes the node.
        name: its default name, for the log before it exists.
        args: command line with ROS arguments; None for the process's own.
        autostart: become active without a launch file.

    Returns:
        The process's exit code: 0 after a clean stop, 2 if an argument is wrong, 1 if autostart failed, or if the node
        gave up.
    """
    node: SettingsNode[Any] | None = None
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        if node is None or node.interruptible:
            raise KeyboardInterrupt  # loading may take too long to wait for; otherwise rclpy ends the spinning

    signal.signal(signal.SIGINT, interrupt)  # before rclpy's handler, which calls it
    try:
        rclpy.init(args=args)
    except RuntimeError as error:
        rclpy.logging.get_logger(name).fatal(f"the ROS arguments are wrong: {error}")
        return 2
    try:
        try:
            node = make()
            node.interrupted = interrupted
            for warning in idle_files(sys.argv if args is None else args, node.get_fully_qualified_name()):
                node.get_logger().warning(warning)
            log_by(node.get_logger())
            if autostart:
                for transition in (node.trigger_configure, node.trigger_activate):
                    if transition() != TransitionCallbackReturn.SUCCESS:
                        return 1
            rclpy.spin_until_future_complete(node, node.given_up)
            if node.given_up.done():
                return 1
        except (ParameterException, ConfigError) as error:
            if node is not None:
                raise
            rclpy.logging.get_logger(name).fatal(f"a parameter is wrong: {error}")
            return 2
        except Exception:
            # A signal may interrupt rclpy anywhere: its C++ turns the interrupt into another exception (while taking a
            # message), or finds the context gone (while creating a wait set).
            if rclpy.ok() and not interrupted.is_set():
                raise
    except KeyboardInterrupt:
        pass
    finally:
        # `ros2 launch` may forward a Ctrl-C that the whole process group has already received: ignore the second one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.close()
            node.destroy_node()
        # rclpy's own thread may be doing it after a signal: between try_shutdown's look and its call.
        with contextlib.suppress(RuntimeError):
            rclpy.try_shutdown()
    return 0
