"""Loop closure over rendered worlds with known truth, and over real recordings.

    .venv/bin/python benchmarks/loop_closure.py [--out benchmarks/results/loop_closure.txt --plot ....png]

Every view of a walk (a keyframe a second) is searched for among those archived before. In pieces, a process each:
`--seeds 700 --raw a.jsonl` and so on, then `--merge a.jsonl b.jsonl`; worlds of one piece share an archive.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from loop_evidence import BETWEEN, Asked, gather, load, save
from loop_scores import draw, report, table
from measuring import machine

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.places.config import LoopConfig
from loftr_ros.settings import with_values
from loftr_ros.worlds.revisits import World

SEEDS = (700, 701, 702, 705)
# Name, mode, and whether a stretch of it revisits itself; each is also played twice.
RECORDINGS = (("sevenscenes", "mono", True), ("sevenscenes", "rgbd", True), ("kitti06_stereo", "stereo", False))


def recordings(data: Path, matcher_config: MatcherConfig, config: LoopConfig) -> list[str]:
    """Loops in real recordings; a line that reports missing ones."""
    from loop_recordings import HEAD, looks_back, played_twice

    matcher = open_matcher(matcher_spec(matcher_config, MatchingConfig()))
    rows = []
    for name, mode, loops in RECORDINGS:
        if not (data / name).is_dir():
            return [f"{data / name} is not there: no real recordings."]
        plays = (looks_back, played_twice) if loops else (played_twice,)
        rows += [play(data / name, mode, matcher, config).columns() for play in plays]
    return ["Median / most, beside the recording's own poses:", "", *table(HEAD, rows)]


def parsed(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    known = vars(LoopConfig())
    if name not in known:
        raise argparse.ArgumentTypeError(
            f"'{name}' is not a setting of loops; expected {', '.join(vars(LoopConfig()))}"
        )
    return name, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="worlds; 800 and on for tuning")
    parser.add_argument("--cache", type=Path, default=Path("build/revisits"), help="folder for rendered views")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the recordings")
    parser.add_argument("--no-recordings", action="store_true", help="rendered worlds only")
    parser.add_argument("--set", action="append", default=[], type=parsed, metavar="NAME=VALUE", help="of `loop`")
    parser.add_argument("--second-tour", action="store_true", help="search in second tours only; for tuning")
    parser.add_argument("--raw", type=Path, help="file for the evidence, to be merged")
    parser.add_argument("--merge", type=Path, nargs="+", help="such files, instead of walking through worlds")
    defaults = MatcherConfig()
    for name in ("network", "weights", "device", "precision", "backend"):
        parser.add_argument(f"--{name}", default=getattr(defaults, name), help="as the node's parameter")
    parser.add_argument("--out", type=Path, help="file for the tables")
    parser.add_argument("--plot", type=Path, help="file for the precision-recall curve")
    arguments = parser.parse_args()
    head = machine()
    whole = {name: type(getattr(LoopConfig(), name))(value) for name, value in arguments.set}
    config = with_values(LoopConfig(), whole)
    matcher_config = MatcherConfig(
        **{name: getattr(arguments, name) for name in ("network", "weights", "device", "precision", "backend")}
    )
    asked: list[Asked] = []
    if arguments.merge:
        for path in arguments.merge:
            asked += load(path)
    elif arguments.seeds:
        matcher = open_matcher(matcher_spec(matcher_config, MatchingConfig()))
        worlds = [World(seed, cache=arguments.cache) for seed in arguments.seeds]
        for number, one in enumerate(
            gather(FrontEnd(matcher, FrontEndConfig()), worlds, config, BETWEEN, arguments.second_tour)
        ):
            asked.append(one)
            if number % 100 == 0:
                print(f"world {one.world}, keyframe {one.number}", flush=True)
        if arguments.raw:
            save(asked, arguments.raw)
    lines = [head, ""]
    if asked:
        found, curves = report(asked, config)
        lines += found
        if arguments.plot:
            draw(curves, arguments.plot)
    if not arguments.no_recordings:
        lines += ["", *recordings(arguments.data, matcher_config, config)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
