"""The matchers that a benchmark compares, behind one interface: an image to features, two images' features to matches.

Each image is encoded once for all its pairs, and both steps are timed separately, so a pair's time is that of two
images and one matching.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from peers.client import NAMES as PEERS
from peers.client import PYTHON, PeerError, PeerProcess

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher.factory import MatcherSpec, open_matcher, precision_of
from loftr_ros.weights import WeightsError

Points = NDArray[np.float32]

OURS, STUDENT = "ours", "student"
# Ours as `loftr_ros.match` has it: with more effort where a pair has few matches.
OURS_SINGLE = "ours-single"
OPENCV = ("sift", "orb")
EVERY = (OURS, STUDENT, *OPENCV, *PEERS)
KEYPOINTS = 2048


@dataclass(frozen=True, eq=False)
class View:
    """One image.

    Attributes:
        key: identifies it among all images of a run.
        frame: gray, with the camera if it has one.
        color: (H, W, 3) uint8 RGB, or (H, W) gray; for the peers, which are trained on colour.
    """

    key: str
    frame: Frame
    color: NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """Matches of a pair: (N, 2) float32 raw pixels; (N,) predicted standard deviations if available."""

    points0: Points
    points1: Points
    seconds: float
    std: NDArray[np.float32] | None = None


class Contender(Protocol):
    """One matcher. `label` is what tables call it."""

    label: str

    def encode(self, view: View) -> tuple[Any, float]:
        """Features of one image, and seconds."""

    def match(self, features0: Any, features1: Any) -> Found:
        """Matches of two images' features; both have been through `encode`."""

    def forget(self, features: Any) -> None:
        """Release features that are not needed any more."""


class Ours:
    """A network behind the front end, as in the node: resized, encoded, matched, refined if needed."""

    def __init__(self, label: str, spec: MatcherSpec, single: bool = False) -> None:
        """Create it with the default settings.

        Args:
            label: replaces the network's name unless empty.
            spec: the matcher.
            single: whether pairs are matched as single ones, and not as those of a stream.
        """
        matcher = open_matcher(spec)
        refined = "" if matcher.has_fine_stage else " + LK"
        as_single = ", single pairs" if single else ""
        self.label = f"{label or matcher.config.name}{refined}, {precision_of(matcher)}{as_single}"
        self.front_end = FrontEnd(matcher, FrontEndConfig())
        self._single = single

    def encode(self, view: View) -> tuple[Any, float]:
        start = time.perf_counter()
        encoded = self.front_end.encode(view.frame)
        return encoded, time.perf_counter() - start

    def match(self, features0: EncodedFrame, features1: EncodedFrame) -> Found:
        pairs = self.front_end.pairs
        start = time.perf_counter()
        keyframe = pairs.complete(features0)
        found = pairs.match_single(keyframe, features1) if self._single else pairs.match([keyframe], features1)[0]
        seconds = time.perf_counter() - start
        return Found(found.keyframe_points, found.current_points, seconds, found.std)

    def forget(self, features: EncodedFrame) -> None:
        pass


class Sparse:
    """OpenCV features with mutual nearest neighbours, and the ratio test if `ratio` is given."""

    def __init__(self, label: str, detector: cv2.Feature2D, norm: int, ratio: float | None) -> None:
        self.label = label
        self._detector, self._ratio = detector, ratio
        self._matcher = cv2.BFMatcher(norm)

    def encode(self, view: View) -> tuple[Any, float]:
        start = time.perf_counter()
        keypoints, descriptors = self._detector.detectAndCompute(view.frame.image, None)
        points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
        return (points, descriptors), time.perf_counter() - start

    def match(self, features0: Any, features1: Any) -> Found:
        start = time.perf_counter()
        index = self.pairs(features0[1], features1[1])
        return Found(features0[0][index[:, 0]], features1[0][index[:, 1]], time.perf_counter() - start)

    def pairs(self, descriptors0: Any, descriptors1: Any) -> NDArray[np.int64]:
        """(N, 2) numbers of matched keypoints, ordered by the first image's."""
        if descriptors0 is None or descriptors1 is None or min(len(descriptors0), len(descriptors1)) < 2:
            return np.zeros((0, 2), np.int64)
        back = {m.queryIdx: m.trainIdx for m in self._matcher.match(descriptors1, descriptors0)}
        kept = [
            (m.queryIdx, m.trainIdx)
            for m, n in self._matcher.knnMatch(descriptors0, descriptors1, k=2)
            if back[m.trainIdx] == m.queryIdx and (self._ratio is None or m.distance < self._ratio * n.distance)
        ]
        return np.array(kept, np.int64).reshape(-1, 2)

    def forget(self, features: Any) -> None:
        pass


class Peer:
    """One of the peers, in their process."""

    def __init__(self, name: str, process: PeerProcess) -> None:
        self.label = process.open(name)
        self._name, self._process = name, process

    def encode(self, view: View) -> tuple[Any, float]:
        return view.key, self._process.encode(self._name, view.key, view.color)

    def match(self, features0: str, features1: str) -> Found:
        return Found(*self._process.match(self._name, features0, features1))

    def forget(self, features: str) -> None:
        self._process.forget(self._name, features)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select matchers."""
    parser.add_argument("--network", action="append", default=[], help="preset of ours; may be given several times")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        help="weights of ours; several times for several, each with the --network of its place, or with the only one",
    )
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--device", default="cpu", help="of ours")
    parser.add_argument("--backend", default="torch", help="of ours")
    parser.add_argument("--threshold", type=float, default=0.0, help="least confidence of ours; 0 for the preset's")
    parser.add_argument("--max-matches", type=int, default=0, help="most matches of ours; 0 for the preset's")
    parser.add_argument(
        "--matchers",
        nargs="+",
        default=list(EVERY),
        choices=[*EVERY, OURS_SINGLE, "aliked-lightglue-unscaled"],
        help="which run",
    )
    parser.add_argument("--threads", type=int, default=0, help="of every matcher; 0 for all cores")
    parser.add_argument("--peers", type=Path, default=PYTHON, help="python of the environment that `make peers` makes")


def open_contenders(arguments: argparse.Namespace, stack: ExitStack) -> tuple[list[Contender], list[tuple[str, str]]]:
    """Load what the options ask for.

    Args:
        arguments: of `add_options`.
        stack: keeps the peers' process.

    Returns:
        The matchers, and (name, reason) of those that cannot run here.

    Raises:
        WeightsError: our network cannot be loaded. A table without it would be useless; one without a peer is not.
    """
    cv2.setNumThreads(arguments.threads or -1)
    contenders: list[Contender] = []
    missing: list[tuple[str, str]] = []
    process = stack.enter_context(PeerProcess(arguments.peers, arguments.threads))
    for name in dict.fromkeys(arguments.matchers):
        try:
            contenders += _opened(name, arguments, process)
        except (PeerError, _StudentError) as error:
            missing.append((name, str(error)))
    labels = [contender.label for contender in contenders]
    return [c for i, c in enumerate(contenders) if c.label not in labels[:i]], missing


class _StudentError(Exception):
    """The published student's weights are missing."""


def _opened(name: str, arguments: argparse.Namespace, process: PeerProcess) -> Iterator[Contender]:
    if name in (OURS, OURS_SINGLE):
        matching = MatchingConfig(threshold=arguments.threshold, max_matches=arguments.max_matches)
        for network, weights in _networks(arguments.network, arguments.weights):
            config = MatcherConfig(
                network=network,
                weights=weights,
                device=arguments.device,
                precision=arguments.precision,
                backend=arguments.backend,
                threads=arguments.threads,
            )
            several = len(arguments.weights) > 1
            label = f"{network} {Path(weights).name}" if several else ""
            yield Ours(label, matcher_spec(config, matching), name == OURS_SINGLE)
    elif name == STUDENT:
        config = MatcherConfig(network="coarse_lite", device=arguments.device, threads=arguments.threads)
        try:
            yield Ours("", matcher_spec(config, MatchingConfig()))
        except WeightsError as error:
            raise _StudentError(str(error)) from error
    else:
        yield open_other(name, process)


def open_other(name: str, process: PeerProcess) -> Contender:
    """One of OpenCV's, or of the peers.

    Raises:
        PeerError: the peer cannot run here.
    """
    if name == "sift":
        return Sparse(f"SIFT {KEYPOINTS}, ratio 0.8", cv2.SIFT_create(KEYPOINTS), cv2.NORM_L2, 0.8)
    if name == "orb":
        return Sparse(f"ORB {KEYPOINTS}", cv2.ORB_create(KEYPOINTS), cv2.NORM_HAMMING, None)
    return Peer(name, process)


def _networks(networks: Sequence[str], weights: Sequence[str]) -> list[tuple[str, str]]:
    if len(networks) > 1 and len(weights) > 1 and len(networks) != len(weights):
        raise SystemExit(f"{len(networks)} networks and {len(weights)} weights: give one of either, or as many")
    count = max(len(networks), len(weights), 1)
    # The default network without any option; the network of the weights if only they are given.
    named = list(networks) or ["auto" if weights else MatcherConfig().network]
    files = list(weights) or [""]
    return list(zip(named * (count if len(named) == 1 else 1), files * (count if len(files) == 1 else 1), strict=True))


class Race:
    """Runs every contender on every pair, one after another, and stores their features while they are needed."""

    def __init__(self, contenders: Sequence[Contender]) -> None:
        self._contenders = contenders
        self._features: list[dict[str, tuple[Any, float]]] = [{} for _ in contenders]

    def warm_up(self, view0: View, view1: View) -> None:
        """The first run of a size allocates memory and chooses kernels."""
        self.pair(view0, view1)
        self.keep(())

    def pair(self, view0: View, view1: View) -> list[tuple[Found, float]]:
        """Matches of a pair and the seconds that both images took to encode, by each contender."""
        results = []
        for contender, features in zip(self._contenders, self._features, strict=True):
            for view in (view0, view1):
                if view.key not in features:
                    features[view.key] = contender.encode(view)
            (first, seconds0), (second, seconds1) = features[view0.key], features[view1.key]
            results.append((contender.match(first, second), seconds0 + seconds1))
        return results

    def keep(self, keys: Sequence[str]) -> None:
        """Release all images except these."""
        for contender, features in zip(self._contenders, self._features, strict=True):
            for key in features.keys() - set(keys):
                contender.forget(features.pop(key)[0])
