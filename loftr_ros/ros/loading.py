"""From parameters to a front end that is ready; the only room of the shell that loads torch.

torch takes seconds to import. It is left to the node's configure transition, so that the node's services are there
before a lifecycle manager, or someone's Ctrl-C, wants them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from loftr_ros.ros.parameters import Parameters

if TYPE_CHECKING:
    from loftr_ros.frontend.pipeline import FrontEnd


def load_front_end(parameters: Parameters, first_keyframe_id: int, say: Callable[[str], object]) -> FrontEnd:
    """Load the network, warm it up, and build the front end around it.

    Args:
        parameters: the node's.
        first_keyframe_id: of the first keyframe.
        say: told which network runs where.

    Raises:
        WeightsError: the weights are missing, damaged, or of another network.
        DeviceError: the device or precision is not to be had.
    """
    import torch

    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.matcher.checkpoint import WeightsError, load_network
    from loftr_ros.matcher.precision import precision_name, resolve_device, resolve_precision

    wanted = parameters.matcher
    torch.set_num_threads(wanted.threads or max(1, (os.cpu_count() or 1) // (2 if wanted.is_pipelined else 1)))
    if not wanted.weights:
        raise WeightsError(
            f"the parameter 'weights' is empty, and network '{wanted.network}' comes without weights; "
            "set it to a weights file"
        )
    device = resolve_device(wanted.device)
    dtype = resolve_precision(wanted.precision, device)
    matcher = load_network(wanted.network, Path(wanted.weights).expanduser(), device, dtype)
    front_end = FrontEnd(matcher, parameters.front_end, first_keyframe_id)
    size = (wanted.warm_up_width, wanted.warm_up_height)
    start = time.monotonic()
    if min(size) > 0:
        front_end.warm_up(size)
    say(
        f"network {wanted.network} on {device} in {precision_name(dtype)} ({wanted.weights}), "
        f"warmed up in {time.monotonic() - start:.2f} s"
    )
    return front_end
