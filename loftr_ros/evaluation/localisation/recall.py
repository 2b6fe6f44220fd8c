"""How many queries are localised within which errors, as visuallocalization.net counts them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.localisation.lists import LocalisationError, read_poses
from loftr_ros.evaluation.localisation.reconstruction import is_model, poses_of_model
from loftr_ros.evaluation.metrics import rotation_error

Array = NDArray[np.float64]

THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
"""Metres and degrees, of Aachen Day-Night (Sattler et al., CVPR 2018)."""
INDOOR_THRESHOLDS = ((0.25, 10.0), (0.5, 10.0), (1.0, 10.0))
"""Metres and degrees, of InLoc."""
_CONDITIONS = ("day", "night")


@dataclass(frozen=True, eq=False)
class Recall:
    """Errors of the queries of one condition.

    Attributes:
        condition: `all`, `day` or `night`.
        metres, degrees: (N,) errors of position and of orientation; infinite for a query without a pose.
    """

    condition: str
    metres: Array
    degrees: Array

    def within(self, metres: float, degrees: float) -> float:
        """Percentage of the queries within both limits."""
        return 100 * float(np.mean((self.metres <= metres) & (self.degrees <= degrees)))

    @property
    def localised(self) -> int:
        """Number of queries with a pose."""
        return int(np.isfinite(self.metres).sum())


def read_truth(path: Path) -> dict[str, Array]:
    """True (4, 4) T_camera_world by name: of a folder with a model of COLMAP, or of a file like the results.

    Raises:
        LocalisationError: it is neither, or cannot be read.
    """
    if path.is_dir():
        if not is_model(path):
            raise LocalisationError(f"{path} holds no model of COLMAP; expected one, or a file of poses")
        return poses_of_model(path)
    found = read_poses(path)
    if not found:
        raise LocalisationError(f"{path} holds no poses")
    return found


def truth_of(names: Sequence[str], truth: Mapping[str, Array], path: Path | None) -> dict[str, Array]:
    """The true poses of some queries.

    Args:
        names: of the queries.
        truth: (4, 4) T_camera_world by name.
        path: where they were read.

    Raises:
        LocalisationError: a query has none.
    """
    if unknown := [name for name in names if name not in truth]:
        raise LocalisationError(f"{unknown[0]} of the queries has no true pose in {path}")
    return {name: truth[name] for name in names}


def recalls(results: Mapping[str, Array], truth: Mapping[str, Array]) -> list[Recall]:
    """Errors of all queries with a true pose, and of those by day and by night where a folder in their names says so.

    Args:
        results: (4, 4) T_camera_world by name, which may be the last parts of the true one.
        truth: (4, 4) T_camera_world by name. Queries without a result count as not localised.

    Raises:
        LocalisationError: a result has no true pose or several, or there is none at all.
    """
    endings = defaultdict[str, list[str]](list)
    for name in truth:
        parts = name.split("/")
        for start in range(len(parts)):
            endings["/".join(parts[start:])].append(name)
    found = dict[str, Array]()
    for name, pose in results.items():
        meant = [name] if name in truth else endings.get(name, [])
        if len(meant) != 1:
            raise LocalisationError(
                f"{name} has no true pose" if not meant else f"{name} may be each of {', '.join(sorted(meant)[:3])}"
            )
        if meant[0] in found:
            raise LocalisationError(f"two results are of {meant[0]}")
        found[meant[0]] = pose
    if not truth:
        raise LocalisationError("there are no true poses")
    errors = {name: _errors(found.get(name), pose) for name, pose in truth.items()}
    groups = {"all": list(truth)}
    for condition in _CONDITIONS:
        groups[condition] = [name for name in truth if condition in name.lower().split("/")[:-1]]
    return [
        Recall(condition, *np.array([errors[name] for name in names]).T) for condition, names in groups.items() if names
    ]


def table_rows(found: Sequence[Recall], thresholds: Sequence[tuple[float, float]] = THRESHOLDS) -> list[list[str]]:
    """A head and a row for each condition: counts, percentages within each pair of limits, median errors."""
    head = ["queries", "localised", *(f"{metres:g} m, {degrees:g} deg" for metres, degrees in thresholds)]
    rows = [[*head, "median m", "median deg"]]
    for each in found:
        rows.append(
            [
                f"{len(each.metres)} {each.condition}",
                f"{each.localised}",
                *(f"{each.within(*limits):.1f} %" for limits in thresholds),
                f"{np.median(each.metres):.4f}",
                f"{np.median(each.degrees):.3f}",
            ]
        )
    return rows


def table(found: Sequence[Recall], thresholds: Sequence[tuple[float, float]] = THRESHOLDS) -> list[str]:
    """`table_rows` as lines of Markdown."""
    head, *rows = table_rows(found, thresholds)
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _errors(pose: Array | None, truth: Array) -> tuple[float, float]:
    """Metres between the cameras' centres, and degrees between their orientations."""
    if pose is None:
        return np.inf, np.inf
    centres = [-each[:3, :3].T @ each[:3, 3] for each in (pose, truth)]
    return float(np.linalg.norm(centres[0] - centres[1])), rotation_error(pose[:3, :3], truth[:3, :3])
