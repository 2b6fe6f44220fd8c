"""`loftr_ros localise`: matches for hloc, keypoints of them, and poses of queries."""

from __future__ import annotations

import csv
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.localisation import keypoints as merging
from loftr_ros.evaluation.localisation.hloc_files import (
    HlocFile,
    Keypoints,
    PairMatches,
    check_names,
    write_features,
    write_matches,
)
from loftr_ros.evaluation.localisation.lists import (
    LocalisationError,
    Pair,
    Query,
    short_names,
    write_pairs,
    write_poses,
)
from loftr_ros.evaluation.localisation.pair_store import PairStore, RawMatches
from loftr_ros.evaluation.localisation.reconstruction import POSE_ERROR, Localiser, images_by_query
from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.recordings import SourceError
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.recordings.still import still
from loftr_ros.settings import Settings, setting

FEATURES, MATCHES, PAIRS = "features.h5", "matches.h5", "pairs.txt"
"""What `match` writes into its folder."""

SIDE = 1024
"""Pixels of the longer side of images in LoFTR's evaluation on Aachen, as hloc has it."""

_ENCODED = 24  # images whose features are kept; pairs of one query follow each other in lists
_SAME = 0.01  # px
_FEW_INLIERS = 30  # COLMAP's Mapper.abs_pose_min_num_inliers


@dataclass(frozen=True)
class KeypointConfig(Settings):
    """How points of pairs become keypoints of images. Pixels are those of the image as the network sees it."""

    cell: float = setting(
        2.0, "Side of the squares that have one keypoint each, of a database's images, in pixels", low=0.25, high=64.0
    )
    max_error: float = setting(
        1.0, "Largest distance of a match from the keypoint that it becomes a match of, in pixels", low=0.05, high=64.0
    )
    most: int = setting(8192, "Most keypoints of an image of a database; 0 for all", low=0, high=1000000)


@dataclass
class Matched:
    """What `match` did.

    Attributes:
        pairs: that are in the files.
        missing: pairs or images that are not, and why.
        interrupted: Ctrl-C stopped it before anything was written.
        keypoints: median number of new images' keypoints.
        matches: median number of pairs' matches.
    """

    pairs: list[Pair]
    missing: list[str] = field(default_factory=list)
    interrupted: bool = False
    keypoints: float = 0.0
    matches: float = 0.0


@dataclass
class Results:
    """What `localise` found.

    Attributes:
        poses: (4, 4) float64 T_camera_world by name of the query.
        missing: reasons why queries have none.
        doubtful: names of queries whose pose has fewer inliers than COLMAP asks of an image.
    """

    poses: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)

    def line(self, queries: int) -> str:
        """A summary, of so many queries."""
        doubtful = f", {len(self.doubtful)} of them doubtful: less than {_FEW_INLIERS} inliers" if self.doubtful else ""
        return f"{len(self.poses)} of {queries} queries have a pose{doubtful}"


class _Images:
    """Frames of a folder of images, encoded when they are needed, the last ones kept."""

    def __init__(self, folder: Path, matcher: PairMatcher, reader: FrameReader) -> None:
        self._folder, self._matcher, self._reader = folder, matcher, reader
        self._kept = OrderedDict[str, EncodedFrame]()
        self.refused = dict[str, str]()

    def encoded(self, name: str) -> EncodedFrame | None:
        """An image's features; None, with a reason in `refused`, for one that cannot be used."""
        if name in self.refused:
            return None
        if name not in self._kept:
            try:
                frame = self._reader.read(still(self._folder / name))
                self._kept[name] = self._matcher.complete(self._matcher.encode(frame))
            except (FrameRefusedError, SourceError) as error:
                self.refused[name] = f"{name}: {error}"
                return None
            while len(self._kept) > _ENCODED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return self._kept[name]


def with_side(matcher: PairMatcher, side: int) -> PairMatcher:
    """The same for images whose longer side is shrunk to this many pixels."""
    config = replace(matcher.config, image=replace(matcher.config.image, max_side=side))
    return PairMatcher(matcher.matcher, config, matcher.wide)


def match(
    images: Path,
    pairs: Sequence[Pair],
    matcher: PairMatcher,
    reader: FrameReader,
    output: Path,
    *,
    side: int = SIDE,
    reference: Path | None = None,
    both: bool = True,
    config: KeypointConfig | None = None,
    parameters: Mapping[str, object] | None = None,
    progress: bool = True,
) -> Matched:
    """Match pairs of images, and write hloc's features and matches; pairs of an interrupted run are not matched again.

    In each pair image 1's points are at its cells and image 0's are sub-pixel, since queries come first in lists.

    Args:
        images: folder that names are below.
        pairs: see `read_pairs`.
        matcher: with its settings, of which `side` replaces the images' size.
        reader: makes frames.
        output: folder for `features.h5`, `matches.h5`, and in `pairs` what an interrupted run goes on from.
        side: pixels to which the longer side of larger images is shrunk for the network.
        reference: features of other images, whose keypoints stay as they are. The other images of the pairs are then
            queries, whose points are all kept. Without it all are images of a database, whose points are merged.
        both: match each pair in both directions.
        config: settings of keypoints.
        parameters: what else the matches depend on. A run with other values does not go on from them.
        progress: show a bar.

    Raises:
        LocalisationError: no pair can be matched, or a file cannot be read or written.
    """
    from tqdm import tqdm

    matcher = with_side(matcher, side)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    check_names(names)
    absent = [name for name in names if not (images / name).is_file()]
    missing = [f"{name}: there is no such image in {images}" for name in absent]
    usable = [pair for pair in pairs if set(pair).isdisjoint(absent)]
    if not usable:
        raise LocalisationError(f"of {len(pairs)} pairs none has both images in {images}; {missing[0]}")
    network = matcher.matcher
    store = PairStore(
        output / "pairs",
        {
            **{name: str(value) for name, value in (parameters or {}).items()},
            "network": network.config.name,
            "weights": network.fingerprint,
            "max_side": matcher.config.image.max_side,
            "min_matches": matcher.wide.min_matches,
            "both": both,
        },
    )
    done = Matched([], missing)
    source = _Images(images, matcher, reader)
    try:
        for pair in tqdm(usable, unit="pair", disable=not progress):
            if pair not in store:
                frames = [source.encoded(name) for name in pair]
                if frames[0] is None or frames[1] is None:
                    continue
                store.put(pair, _match_pair(matcher, frames[0], frames[1], both))
            done.pairs.append(pair)
    except KeyboardInterrupt:
        done.interrupted = True
        done.missing.append(f"stopped by Ctrl-C after {len(done.pairs)} of {len(usable)} pairs; run it again to go on")
        return done
    done.missing += source.refused.values()
    if not done.pairs:
        raise LocalisationError(f"no pair could be matched; {done.missing[0]}")
    _assemble(store, done, output, reference, config or KeypointConfig(), progress)
    return done


def _match_pair(matcher: PairMatcher, first: EncodedFrame, second: EncodedFrame, both: bool) -> RawMatches:
    """Matches of two encoded images with points of the second at its cells, and with `both` those of the first too."""
    found = matcher.match_single(second, first)
    points0, points1, scores = [found.current_points], [found.keyframe_points], [found.confidence]
    if both:
        found = matcher.match_single(first, second)
        points0.append(found.keyframe_points)
        points1.append(found.current_points)
        scores.append(found.confidence)
    held = [np.concatenate(each).astype(np.float32) for each in (points0, points1, scores)]
    return RawMatches(held[0], held[1], held[2], float(np.mean(first.scale)), float(np.mean(second.scale)))


def _assemble(
    store: PairStore, done: Matched, output: Path, reference: Path | None, config: KeypointConfig, progress: bool
) -> None:
    """Write features, matches and pairs of all stored matches."""
    from tqdm import tqdm

    fixed = HlocFile(reference) if reference is not None else None
    try:
        known = fixed.images() if fixed is not None else set[str]()
        of_image = defaultdict[str, list[tuple[Pair, int]]](list)
        for pair in done.pairs:
            if reference is not None and known.isdisjoint(pair):
                raise LocalisationError(f"neither {pair[0]} nor {pair[1]} has keypoints in {reference}")
            for side, name in enumerate(pair):
                if name not in known:
                    of_image[name].append((pair, side))
        for name in (FEATURES, MATCHES, PAIRS):  # of an earlier run, which would not fit if one cannot be written
            (output / name).unlink(missing_ok=True)
        counts = list[int]()

        def features() -> Iterator[tuple[str, Keypoints]]:
            for name, where in tqdm(of_image.items(), unit="image", desc="keypoints", disable=not progress):
                keypoints = _keypoints(store, where, config, merged=reference is None)
                counts.append(len(keypoints.points))
                yield name, keypoints

        write_features(output / FEATURES, features())
        with HlocFile(output / FEATURES) as new:

            @lru_cache(maxsize=64)
            def keypoints_of(name: str) -> Keypoints:
                return fixed.keypoints(name) if fixed is not None and name in known else new.keypoints(name)

            numbers = list[int]()

            def matches() -> Iterator[tuple[Pair, int, PairMatches]]:
                for pair in tqdm(done.pairs, unit="pair", desc="matches", disable=not progress):
                    raw, index = store.get(pair), []
                    for name, points, scale in zip(
                        pair, (raw.points0, raw.points1), (raw.scale0, raw.scale1), strict=True
                    ):
                        is_query = reference is not None and name not in known
                        index.append(
                            merging.nearest(
                                points, keypoints_of(name).points, _SAME if is_query else config.max_error * scale
                            )
                        )
                    kept = merging.one_to_one(index[0], index[1], raw.scores)
                    numbers.append(len(kept))
                    yield (
                        pair,
                        len(keypoints_of(pair[0]).points),
                        PairMatches(np.stack([each[kept] for each in index], axis=1), raw.scores[kept]),
                    )

            write_matches(output / MATCHES, matches())
        write_pairs(output / PAIRS, done.pairs)
        done.keypoints, done.matches = float(np.median(counts or [0])), float(np.median(numbers))
    finally:
        if fixed is not None:
            fixed.__exit__()


def _keypoints(store: PairStore, where: Sequence[tuple[Pair, int]], config: KeypointConfig, merged: bool) -> Keypoints:
    """Keypoints of an image from its pairs, in each of which it is image 0 or 1."""
    held = [(store.get(pair), side) for pair, side in where]
    scale = (held[0][0].scale0, held[0][0].scale1)[held[0][1]]
    points, scores = merging.merge(
        np.concatenate([(raw.points0, raw.points1)[side] for raw, side in held]),
        np.concatenate([raw.scores for raw, _ in held]),
        config.cell * scale if merged else 0.0,
        config.most if merged else 0,
    )
    return Keypoints(points, scores, scale)


def retrieved_pairs(
    images: Path,
    queries: Sequence[str],
    database: Sequence[str],
    count: int,
    matcher: PairMatcher,
    reader: FrameReader,
    progress: bool = True,
) -> tuple[list[Pair], list[str]]:
    """Pairs of each query with the images of a database that look most like it by the network's place descriptor.

    Returns:
        The pairs, and reasons why images are left out.

    Raises:
        LocalisationError: no image can be read.
    """
    from tqdm import tqdm

    describe = PlaceDescriptor.of(matcher.matcher)
    source = _Images(images, matcher, reader)
    described = dict[str, NDArray[np.float32]]()
    for name in tqdm(dict.fromkeys([*database, *queries]), unit="image", disable=not progress):
        encoded = source.encoded(name)
        if encoded is not None:
            described[name] = describe(encoded.features)
    known = [name for name in database if name in described]
    asked = [name for name in queries if name in described]
    if not known or not asked:
        raise LocalisationError(f"no images to pair; {next(iter(source.refused.values()), 'a list is empty')}")
    alike = np.stack([described[name] for name in asked]) @ np.stack([described[name] for name in known]).T
    pairs = list[Pair]()
    for name, row in zip(asked, alike, strict=True):
        others = [known[other] for other in np.argsort(-row, kind="stable")[: count + 1] if known[other] != name]
        pairs += [(name, other) for other in others[:count]]
    return pairs, list(source.refused.values())


def localise(
    model: Path,
    queries: Sequence[Query],
    pairs: Sequence[Pair],
    features: Path,
    matches: Path,
    output: Path,
    *,
    max_error: float = POSE_ERROR,
    name_parts: int = 1,
    progress: bool = True,
) -> Results:
    """Find poses of queries, and write them as visuallocalization.net takes them; beside it a table of inliers.

    Args:
        model: folder of COLMAP with the database's images and points.
        queries: with cameras.
        pairs: of each query with images of the database, query first.
        features, matches: hloc's files.
        output: file of the poses; `.csv` beside it has correspondences and inliers.
        max_error: see `Localiser`.
        name_parts: see `write_poses`.
        progress: show a bar.

    Raises:
        LocalisationError: a file cannot be read or written, or files do not belong together.
    """
    from tqdm import tqdm

    short_names((query.name for query in queries), name_parts)  # before anything that takes long
    results, rows, by_query = Results(), list[list[object]](), images_by_query(pairs)
    with Localiser(model, features, matches, max_error) as localiser:
        for query in tqdm(queries, unit="query", disable=not progress):
            if query.name not in by_query:
                results.missing.append(f"{query.name} is in no pair")
                continue
            found = localiser.localise(query, by_query[query.name])
            rows.append([query.name, found.correspondences, found.inliers])
            if found.pose is None:
                results.missing.append(f"{query.name}: no pose by {found.correspondences} correspondences")
                continue
            results.poses[query.name] = found.pose
            if found.inliers < _FEW_INLIERS:
                results.doubtful.append(query.name)
    write_poses(output, results.poses, name_parts)
    with output.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["query", "correspondences", "inliers"], *rows])
    return results
