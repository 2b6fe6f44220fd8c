"""Where weights come from: the catalogue of published files, the cache, and what the user says."""

from __future__ import annotations

import os
from pathlib import Path

from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.config import AUTO, DEFAULT_PRESET
from loftr_ros.weights.catalogue import CATALOGUE, Entry, find_entry

__all__ = ["EMBEDDED", "VARIABLE", "WeightsError", "find_weights"]

VARIABLE = "LOFTR_ROS_WEIGHTS"
# In the package: what a robot that has never seen a network starts with.
EMBEDDED = {DEFAULT_PRESET: Path(__file__).parent / "compact.safetensors"}
# Presets that run the published weights of another.
_WEIGHTS_OF = {"efficient_opt": "efficient"}


def find_weights(network: str, given: str = "") -> Path:
    """The weights file to use.

    Args:
        network: name of a preset, or `auto` for whatever network the file is of.
        given: what the user said: a file, a name of the catalogue, or a preset's name for its weights in the package;
            empty to look in the environment's LOFTR_ROS_WEIGHTS, then in the package, then in the cache for published
            weights of the network.

    Raises:
        WeightsError: none is there; the message says what to do.
    """
    said = given or os.environ.get(VARIABLE, "")
    if said:
        return _named(said)
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
        f"network '{network}' comes without weights; name a weights file by `weights`, or by the environment variable "
        f"{VARIABLE}.{advice}"
    )


def _named(said: str) -> Path:
    """A file, that in the package, or the cached file of a name of the catalogue."""
    path = Path(said).expanduser()
    if path.is_file():
        return path
    if said in EMBEDDED:
        return EMBEDDED[said]
    entry = find_entry(said)
    if entry is None:
        names = ", ".join([*EMBEDDED, *(entry.name for entry in CATALOGUE)])
        raise WeightsError(f"weights file {path} is not there; give an existing file, or one of the names {names}")
    cached = entry.cached()
    if cached is None:
        raise WeightsError(f"the published weights '{entry.name}' are not on this machine yet: {_how(entry)}")
    return cached


def _how(entry: Entry) -> str:
    if entry.urls:
        return f"`loftr_ros weights get {entry.name}`"
    return f"download {entry.file} by hand from {entry.page} to {entry.cache_path()}"
