"""The benchmark's side of the peers' process."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peers.wire import receive, send

NAMES = ("xfeat", "xfeat-star", "aliked-lightglue")
PYTHON = Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"
# Makes glibc keep the memory of large tensors instead of requesting it again and again. This saves a third of ALIKED's
# time on CPUs, and costs nothing.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "500000000",
}


class PeerError(Exception):
    """A peer that cannot run; the message says why and what to do."""


class PeerProcess:
    """One process for all peers, started when the first is opened."""

    def __init__(self, python: Path = PYTHON, threads: int = 0) -> None:
        """Create it without starting a process.

        Args:
            python: of the environment with the peers.
            threads: of their torch; 0 for its default.
        """
        self._python, self._threads = python, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.close()  # which ends it
                self._process.wait(timeout=10)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def open(self, peer: str, weights: Path | None = None) -> str:
        """Load a peer; returns its name in further messages.

        Args:
            peer: its name.
            weights: a file for peers without their own.

        Raises:
            PeerError: the environment is missing, or the peer does not load in it.
        """
        if self._process is None:
            if not self._python.is_file():
                where = self._python.parents[1].name
                raise PeerError(f"the peers' environment {where} is not there; `make peers` makes it")
            # Nothing of this environment may reach that one.
            variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
            variables |= KEPT_MEMORY
            self._process = subprocess.Popen(
                [self._python, Path(__file__).with_name("server.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=variables,
            )
        return str(
            self.ask({"do": "open", "peer": peer, "threads": self._threads, "weights": str(weights or "")})[0]["label"]
        )

    def ask(
        self, message: dict[str, Any], arrays: dict[str, NDArray[Any]] | None = None
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Send a message and wait for the answer.

        Raises:
            PeerError: the peer failed, or its process died.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            send(self._process.stdin, message, arrays)
            reply, made = receive(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            self._process.wait(timeout=10)
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise PeerError(f"the peers' process ended with {self._process.returncode}: {' | '.join(last)}") from error
        if "error" in reply:
            raise PeerError(f"{message['peer']} failed: {reply['error'].strip().splitlines()[-1]}")
        return reply, made

    def encode(self, peer: str, key: str, image: NDArray[np.uint8]) -> float:
        """Features of an (H, W) or (H, W, 3) RGB image, stored there under `key`; returns seconds."""
        return float(self.ask({"do": "encode", "peer": peer, "key": key}, {"image": image})[0]["seconds"])

    def match(self, peer: str, key0: str, key1: str) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """(N, 2) pixels in both images, and seconds."""
        reply, made = self.ask({"do": "match", "peer": peer, "keys": [key0, key1]})
        return made["points0"], made["points1"], float(reply["seconds"])

    def forget(self, peer: str, key: str) -> None:
        """Release an image's features."""
        self.ask({"do": "forget", "peer": peer, "key": key})
