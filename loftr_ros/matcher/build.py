"""A network from its configuration: the one place that knows which class belongs to which."""

from __future__ import annotations

from loftr_ros.matcher.compact import Compact
from loftr_ros.matcher.config import LoFTRConfig, NetworkConfig
from loftr_ros.matcher.loftr import LoFTR

Network = LoFTR | Compact


def build_network(config: NetworkConfig) -> Network:
    """The network with random weights."""
    return LoFTR(config) if isinstance(config, LoFTRConfig) else Compact(config)
