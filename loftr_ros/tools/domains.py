"""A ROS domain for processes that are to meet nobody else's."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator

DOMAINS = range(1, 102)  # above 101 the ports of DDS overlap Linux's ephemeral ports
_starts = itertools.count(os.getpid())


class DomainError(Exception):
    """No domain is free; the message says what to do."""


@contextlib.contextmanager
def own_domain() -> Iterator[int]:
    """The domain of ROS_DOMAIN_ID if it is set, else a free one.

    Raises:
        DomainError: none is free.
    """
    if os.environ.get("ROS_DOMAIN_ID"):
        yield int(os.environ["ROS_DOMAIN_ID"])
        return
    with free_domain() as domain:
        yield domain


@contextlib.contextmanager
def free_domain() -> Iterator[int]:
    """A domain without a participant on this machine, reserved against other processes that ask here.

    Each call of a process begins its search one domain further than the last one, away from participants that end.

    Raises:
        DomainError: none is free.
    """
    first = next(_starts) % len(DOMAINS)
    for domain in [*DOMAINS[first:], *DOMAINS[:first]]:
        # The domain's UDP port for discovery. Its TCP port is unused by DDS: holding it reserves the domain.
        port = 7400 + 250 * domain
        with socket.socket(type=socket.SOCK_STREAM) as mark, socket.socket(type=socket.SOCK_DGRAM) as probe:
            try:
                mark.bind(("127.0.0.1", port))
                mark.listen()
                probe.bind(("", port))
            except OSError:
                continue
            probe.close()
            yield domain
            return
    raise DomainError("every ROS domain from 1 to 101 is in use on this machine; set ROS_DOMAIN_ID to choose one")
