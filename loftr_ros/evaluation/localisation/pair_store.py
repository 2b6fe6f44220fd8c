"""Matches of pairs on disk while many pairs are being matched: a file each, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.localisation.lists import LocalisationError, Pair, replacing

_SETTINGS = "settings.json"


@dataclass(frozen=True, eq=False)
class RawMatches:
    """Matches of a pair, before points become keypoints.

    Attributes:
        points0, points1: (N, 2) float32 pixels of the images.
        scores: (N,) float32 in [0, 1].
        scale0, scale1: pixels of the images per pixel of what the network saw.
    """

    points0: NDArray[np.float32]
    points1: NDArray[np.float32]
    scores: NDArray[np.float32]
    scale0: float
    scale1: float


class PairStore:
    """A folder of matches that were all found by the same network and settings."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        """Open or make it.

        Args:
            folder: of the matches.
            settings: what the matches depend on; values are text, numbers or truth values.

        Raises:
            LocalisationError: it holds matches of other settings, or cannot be written.
        """
        self.folder = folder
        file = folder / _SETTINGS
        try:
            before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise LocalisationError(f"{file} cannot be read: {error}; remove {folder} to match anew") from error
        if before is None:
            with replacing(file) as part:
                part.write_text(json.dumps(dict(settings), indent=1), encoding="utf-8")
        elif before != dict(settings):
            other = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
            raise LocalisationError(
                f"{folder} holds matches of other settings ({', '.join(other)}); use another folder, or remove it"
            )

    def __contains__(self, pair: Pair) -> bool:
        return self._file(pair).is_file()

    def put(self, pair: Pair, matches: RawMatches) -> None:
        """Store a pair's matches.

        Raises:
            LocalisationError: the disk is full, or cannot be written.
        """
        with replacing(self._file(pair)) as part, part.open("wb") as opened:
            np.savez(opened, pair=np.array(pair), points0=matches.points0, points1=matches.points1,
                     scores=matches.scores, scales=np.array([matches.scale0, matches.scale1]))  # fmt: skip

    def get(self, pair: Pair) -> RawMatches:
        """A pair's matches.

        Raises:
            LocalisationError: they are missing or damaged.
        """
        file = self._file(pair)
        try:
            with np.load(file, allow_pickle=False) as held:
                if tuple(held["pair"].tolist()) != pair:
                    raise ValueError(f"it is of the pair {held['pair'].tolist()}")
                scale0, scale1 = held["scales"].tolist()
                return RawMatches(held["points0"], held["points1"], held["scores"], scale0, scale1)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise LocalisationError(f"{file} cannot be read: {error}; remove it to match this pair anew") from error

    def _file(self, pair: Pair) -> Path:
        digest = hashlib.sha256("\n".join(pair).encode()).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}.npz"
