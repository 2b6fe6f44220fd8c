"""Finding weights: the catalogue of published files, the cache, and the user's choice."""

from __future__ import annotations

import os
from pathlib import Path

from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.config import AUTO, DEFAULT_PRESET
from loftr_ros.weights.catalogue import CATALOGUE, Entry, find_entry

__all__ = ["EMBEDDED", "VARIABLE", "WeightsError", "find_weights"]

VARIABLE = "LOFTR_ROS_WEIGHTS"
# In the package, for a robot without any downloads.
EMBEDDED = {DEFAULT_PRESET: Path(__file__).parent / "compact.safetensors"}
# Presets that use the published weights of another.
_WEIGHTS_OF = {"efficient_opt": "efficient"}


def find_weights(network: str, given: str = "") -> Path:
    """Find the weights file to use.

    Args:
        network: name of a preset, or `auto` for the network of the file.
        given: the user's choice: a file, a name of the catalogue, or a preset's name for its weights in the package. If
            empty, the search order is the environment's LOFTR_ROS_WEIGHTS, the package, and the cache of published
            weights for the network.

    Raises:
        WeightsError: there is none; the message says what to do.
    """
    requested = given or os.environ.get(VARIABLE, "")
    if requested:
        return _named(requested)
    embedded = EMBEDDED.get(DEFAULT_PRESET if network == AUTO else network)
    if embedded is not None:
        return embedded
    entries = [entry for entry in CATALOGUE if entry.network == _WEIGHTS_OF.get(network, network)]
    for entry in entries:
        path = entry.cached()
        if path is not None:
            return path
    advice = f" Published ones: {_how(entries[0])}" if entries else " None are published"
    raise WeightsError(
        f"network '{network}' comes without weights; set `weights` to a weights file, or the environment variable "
        f"{VARIABLE}.{advice}"
    )


def _named(requested: str) -> Path:
    """A file, the one in the package, or the cached file of a catalogue name."""
    path = Path(requested).expanduser()
    if path.is_file():
        return path
    if requested in EMBEDDED:
        return EMBEDDED[requested]
    entry = find_entry(requested)
    if entry is None:
        names = ", ".join([*EMBEDDED, *(entry.name for entry in CATALOGUE)])
        raise WeightsError(f"weights file {path} does not exist; give an existing file, or one of the names {names}")
    cached = entry.cached()
    if cached is None:
        raise WeightsError(f"the published weights '{entry.name}' are not on this machine yet: {_how(entry)}")
    return cached


def _how(entry: Entry) -> str:
    if entry.urls:
        return f"`loftr_ros weights get {entry.name}`"
    return f"download {entry.file} by hand from {entry.page} to {entry.cache_path()}"
