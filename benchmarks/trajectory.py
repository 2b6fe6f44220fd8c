"""Trajectories against ground truth: our front end beside OpenCV's SIFT and ORB through the same geometry.

Every sequence runs in its metric mode, with errors without any scale alignment, and in mode mono, with errors after a
similarity alignment and the scale's drift. A camera that does not move must stay in place. Errors are computed by evo,
which must be installed: .venv/bin/pip install -r benchmarks/requirements.txt

    .venv/bin/python benchmarks/trajectory.py [--data ../shared/data] [--set keyframe.min_coverage=0.5] [--quick]
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from contenders import OPENCV, OURS
from network_behind import HELP, FrontEndBehind
from numpy.typing import NDArray
from sparse_front_end import LEFT_OUT, KeypointMatcher, KeypointPairs, ShakenPairs, use_threads
from trajectory_scores import EvoMissingError, require_evo
from trajectory_tables import DISTANCES, Run, Walk, plot, tables

from loftr_ros.frontend.config import MONO, FrontEndConfig
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher.factory import open_matcher, precision_of
from loftr_ros.recordings import open_source
from loftr_ros.settings import ConfigError, settings_of, with_values

Array = NDArray[np.float64]

# Folder and its metric mode; each runs in mode mono too.
SETS = ("sevenscenes:rgbd", "kitti06_stereo:stereo", "euroc_micro:stereo")
# Sequences with a camera that does not move.
STILL = ("euroc_micro",)
EVERY = (OURS, *OPENCV)
ORDERS, QUICK_FRAMES, QUICK_ORDERS = 5, 30, 1


@dataclass(frozen=True)
class Contender:
    """A matcher, with a function that makes a front end from settings and the number of a match order."""

    label: str
    front_end: Callable[[FrontEndConfig, int], FrontEnd]


def open_contenders(arguments: argparse.Namespace) -> Iterator[Contender]:
    """The matchers of `--matchers`. Each is loaded once for all front ends."""
    for name in dict.fromkeys(arguments.matchers):
        if name == OURS:
            config = MatcherConfig(
                network=arguments.network,
                weights=arguments.weights,
                device=arguments.device,
                precision=arguments.precision,
                backend=arguments.backend,
                threads=arguments.threads,
            )
            ours = open_matcher(matcher_spec(config, MatchingConfig()))
            label = f"{ours.config.name}{'' if ours.has_fine_stage else ' + LK'}, {precision_of(ours)}"
            yield Contender(
                label,
                lambda config, order, matcher=ours: FrontEndBehind(
                    ShakenPairs(matcher, config, order), config, arguments.behind
                ),
            )
        else:
            sparse = KeypointMatcher(name)
            yield Contender(
                sparse.label,
                lambda config, order, matcher=sparse: FrontEnd(KeypointPairs(matcher, config, order), config),
            )


def run(name: str, contenders: Sequence[Contender], config: FrontEndConfig, arguments: argparse.Namespace) -> Walk:
    """All matchers, modes and orders on one sequence, in parallel: a matcher encodes an image once for all of them."""
    from tqdm import tqdm

    folder, _, mode = name.rpartition(":")
    walk = Walk(folder, mode)
    is_rendered = folder.startswith("rendered")
    if not is_rendered and not (arguments.data / folder).is_dir():
        walk.missing = f"{arguments.data / folder} is not there"
        return walk
    standing: list[list[tuple[FrontEnd, Run]]] = []
    for contender in contenders:
        standing.append([])
        for each in dict.fromkeys((mode, MONO)):
            settings = with_values(config, {"mode": each})
            for order in range(arguments.orders):
                walk.runs.append(Run(each, contender.label))
                standing[-1].append((contender.front_end(settings, order), walk.runs[-1]))
    source = folder if is_rendered else arguments.data / folder
    with open_source(source, stop=arguments.frames or None) as frames:
        frames.require(mode)
        for frame in tqdm(frames, desc=name, total=frames.length, unit="frame", disable=None):
            if frame.pose is not None:
                walk.truth.append(frame.pose)
            image = frame.to_frame(mode)
            for front_ends in standing:
                for front_end, each in front_ends:
                    each.add(front_end.process(image))
    if walk.truth and len(walk.truth) < walk.frames:
        raise SystemExit(f"{folder}: {walk.frames - len(walk.truth)} frames have no true pose")
    if walk.truth:
        walk.truth = list(np.linalg.inv(walk.truth[0]) @ np.array(walk.truth))
    elif folder not in arguments.still:
        raise SystemExit(f"{folder} has no true poses; --still says of a sequence that its camera does not move")
    return walk


def parsed(text: str) -> tuple[str, Any]:
    """NAME=VALUE, of `--set`."""
    name, equals, value = text.partition("=")
    if not equals or name not in {known for known, _, _ in settings_of(FrontEndConfig())}:
        raise argparse.ArgumentTypeError(f"'{text}': expected NAME=VALUE, of a setting of the front end")
    return name, yaml.safe_load(value)


def protocol(arguments: argparse.Namespace) -> list[str]:
    import evo
    import torch

    changed = ", ".join(f"{name}={value}" for name, value in arguments.set)
    if arguments.behind is not None:
        changed += f"{', ' if changed else ''}the network {arguments.behind} frames behind"
    parts = ", ".join(f"{100 * part:g}" for part in DISTANCES)
    return [
        f"The front end's defaults{f', but for {changed}' if changed else ''}; the same keyframe policy, depth,",
        "geometry and odometry for all matchers, SIFT and ORB on images that are not shrunk. Mean (± standard",
        f"deviation) over {arguments.orders} match orders, all but the first of which leave out a random",
        f"{100 * LEFT_OUT:g} % of the matches. Located: frames whose place is known; the others count nowhere else.",
        "Breaks: how often the chain was broken; what comes after is compared as it was placed. ATE: RMSE of the",
        f"positions after alignment (Umeyama). Drift and turn: mean errors of the motion over {parts} % of the",
        "true path, all pairs. Step: RMSE of the motion from one located frame to the next. Scale drift: by how much",
        "the second half is drawn larger than the first. Its own scale std: what the front end says of the unit of",
        "length at the last frame over that at the first keyframe.",
        f"evo {evo.__version__}, torch {torch.__version__}, OpenCV {cv2.__version__}, {platform.machine()}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the sequences")
    parser.add_argument(
        "--sets", nargs="+", default=list(SETS), help="FOLDER:MODE each; a folder may be `rendered:room?seed=3`"
    )
    parser.add_argument("--still", nargs="*", default=list(STILL), help="folders of a camera that does not move")
    parser.add_argument("--matchers", nargs="+", default=list(EVERY), choices=EVERY, help="which run")
    parser.add_argument("--orders", type=int, default=ORDERS, help="match orders that everything is run with")
    parser.add_argument("--frames", type=int, default=0, help="of each sequence, at most; 0 for all")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FRAMES} frames, {QUICK_ORDERS} order")
    parser.add_argument(
        "--set", action="append", default=[], type=parsed, metavar="NAME=VALUE", help="a setting, as the node names it"
    )
    defaults = MatcherConfig()
    for name in ("network", "weights", "device", "precision", "backend"):
        parser.add_argument(f"--{name}", default=getattr(defaults, name), help="of ours, as the node's parameter")
    parser.add_argument("--threads", type=int, default=0, help="of every matcher; 0 for all cores")
    parser.add_argument("--behind", type=int, metavar="FRAMES", help=f"of ours: {HELP}")
    parser.add_argument("--out", type=Path, help="file for the tables")
    parser.add_argument("--plots", type=Path, help="folder for pictures")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.frames, arguments.orders = arguments.frames or QUICK_FRAMES, QUICK_ORDERS
    try:
        require_evo()
        config = with_values(FrontEndConfig(), dict(arguments.set))
        if config.scale != FrontEndConfig().scale:
            raise ConfigError("the mode is said by --sets")
        for name in arguments.sets:
            with_values(config, {"mode": name.rpartition(":")[2]})
    except (EvoMissingError, ConfigError) as error:
        parser.error(str(error))
    use_threads(arguments.threads)
    contenders = list(open_contenders(arguments))
    walks = [run(name, contenders, config, arguments) for name in arguments.sets]
    lines = [*protocol(arguments), "", *tables(walks)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")
    if arguments.plots:
        plot(walks, arguments.plots)


if __name__ == "__main__":
    main()
