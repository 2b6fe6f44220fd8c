"""The graph solved in a process of its own: GTSAM holds Python's lock while it works, for seconds on a large graph.

Run as `python -m loftr_ros.backend.solver_process`: requests come on the standard input, answers go to the standard
output, each as its length and a pickle. It ends with its parent, whose end of the pipe closes then.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from typing import IO, Any

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.graph import Graph, Solution
from loftr_ros.backend.measurements import BackEndError

_HEAD = struct.Struct("<Q")
# Beside the front end, which comes first.
_NICENESS = 5


class SolverProcess:
    """Solves one graph at a time, elsewhere."""

    def __init__(self) -> None:
        """Start the process."""
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._answer: Solution | Exception | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a graph is being solved, or its solution waits to be taken."""
        return self._thread is not None

    def begin(self, graph: Graph, config: BackEndConfig, before: Solution | None) -> None:
        """Solve a graph; nothing else is being solved.

        Args:
            graph, config, before: as `solve` takes them; nobody else may change them meanwhile.
        """
        assert self._thread is None
        self._answer = None
        self._thread = threading.Thread(
            target=self._work, args=(graph, config, before), name="loftr_solver", daemon=True
        )
        self._thread.start()

    def take(self) -> Solution | None:
        """The solution; None while there is none.

        Raises:
            BackEndError: the graph could not be solved, or the process ended.
        """
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread.join()
        self._thread, answer = None, self._answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, graph: Graph, config: BackEndConfig, before: Solution | None) -> None:
        try:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._process = _started()
            assert process.stdin is not None and process.stdout is not None
            _send(process.stdin, (graph, config, before))
            self._answer = _received(process.stdout)
        except (OSError, EOFError, pickle.PickleError) as error:
            code = None if self._process is None else self._process.poll()
            self._answer = BackEndError(f"the process that solves the graph ended (code {code}): {error}")


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "loftr_ros.backend.solver_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def _send(pipe: IO[bytes], item: Any) -> None:
    data = pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_HEAD.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _received(pipe: IO[bytes]) -> Any:
    head = pipe.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise EOFError("it closed its end")
    (length,) = _HEAD.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError("it closed its end")
    return pickle.loads(data)


def main() -> None:
    """Answer until the parent closes its end."""
    from loftr_ros.backend.solving import solve

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends this one
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        try:
            graph, config, before = _received(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: Solution | Exception = solve(graph, config, before)
        except BackEndError as error:
            answer = error
        except Exception as error:  # nobody foresaw it: the parent says so in its log
            answer = BackEndError(f"{type(error).__name__}: {error}")
        try:
            _send(answers, answer)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
