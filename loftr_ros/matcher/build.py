"""Building a network from its configuration; only this module maps configurations to classes."""

from __future__ import annotations

from loftr_ros.matcher.compact.network import Compact
from loftr_ros.matcher.config import CompactConfig, EfficientConfig, NetworkConfig
from loftr_ros.matcher.efficient.network import EfficientLoFTR
from loftr_ros.matcher.loftr.network import LoFTR

Network = LoFTR | Compact | EfficientLoFTR


def build_network(config: NetworkConfig) -> Network:
    """The network with random weights."""
    if isinstance(config, CompactConfig):
        return Compact(config)
    return EfficientLoFTR(config) if isinstance(config, EfficientConfig) else LoFTR(config)
