"""Builds a ready front end from parameters; the only module of `ros/` that loads torch.

Importing torch takes seconds. It is left to the configure transition, so that the node's services are up before a
lifecycle manager, or a Ctrl-C, needs them.
"""

from __future__ import annotations

import gc
import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loftr_ros.ros.parameters import Parameters

if TYPE_CHECKING:
    from loftr_ros.frontend.pipeline import FrontEnd


def free_gpu_memory() -> None:
    """Give the memory of a front end that is gone back to other processes."""
    import torch

    from loftr_ros.matcher.constants import forget_constants

    forget_constants()  # captured programs of others hold theirs
    gc.collect()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # of a lost GPU
            torch.cuda.empty_cache()


def load_front_end(parameters: Parameters, first_keyframe_id: int, logger: Any) -> FrontEnd:
    """Load the network, warm it up, and build the front end.

    Args:
        parameters: the node's.
        first_keyframe_id: ID of the first keyframe.
        logger: the node's; logs which network runs where.

    Raises:
        WeightsError: the network is unknown, or the weights are missing, damaged, or of another network.
        DeviceError: the device or precision is not available.
    """
    from loftr_ros.frontend.matcher_settings import RANDOM, matcher_spec
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.matcher.factory import backend_of, open_matcher, precision_of

    wanted = parameters.matcher
    cores = os.cpu_count() or 1
    threads = wanted.threads or max(1, cores // (2 if wanted.is_pipelined else 1))
    spec = matcher_spec(wanted, parameters.matching, parameters.tensorrt)
    matcher = open_matcher(replace(spec, threads=threads))
    front_end = FrontEnd(matcher, parameters.front_end, first_keyframe_id)
    size = (wanted.warm_up_width, wanted.warm_up_height)
    if min(size) > 0 and matcher.fixed_size is not None:
        size = matcher.fixed_size
    start = time.monotonic()
    if min(size) > 0:
        front_end.warm_up(size)
    warm = f"warmed up in {time.monotonic() - start:.2f} s" if min(size) > 0 else "not warmed up"
    logger.info(
        f"network {matcher.config.name} on {matcher.device} in {precision_of(matcher)}, weights "
        f"{spec.weights or RANDOM}, backend {backend_of(matcher)}, {warm}"
    )
    if wanted.weights == RANDOM:
        logger.warning("the weights are random: the matches mean nothing; set the parameter 'weights' for real ones")
    return front_end
