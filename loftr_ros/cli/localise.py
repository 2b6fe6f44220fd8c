"""`loftr_ros localise`: visual localisation step by step, in hloc's file formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import check_output, fail, finish
from loftr_ros.cli.options import MIN_MATCHES, FrontEndOptions, MinMatches, Output, Quiet, grouped

app = typer.Typer(
    help="Visual localisation step by step, in hloc's file formats: pairs, matches, points, poses, recall.",
    no_args_is_help=True,
)

Pairs = Annotated[
    Path, typer.Argument(help="Pairs of images as hloc writes them: two names a line.", show_default=False)
]
Model = Annotated[
    Path,
    typer.Argument(help="Folder of a COLMAP model: cameras, images and points3D, .bin or .txt.", show_default=False),
]
Images = Annotated[Path, typer.Argument(help="Folder that the images' names are below.", show_default=False)]
Features = Annotated[Path, typer.Option(help="hloc's file of features.", show_default=False)]
Matches = Annotated[Path, typer.Option(help="hloc's file of matches.", show_default=False)]
Side = Annotated[
    int, typer.Option(help="Pixels to which the longer side of larger images is shrunk for the network.", min=64)
]
Both = Annotated[
    bool,
    typer.Option(
        "--both/--one-way",
        help="Match each pair in both directions: twice the time, and more points of either image's own cells.",
    ),
]
File = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]


@app.command()
@grouped
def pairs(
    model: Model,
    front_end_options: FrontEndOptions,
    images: Annotated[
        Path | None, typer.Option(help="Folder that the images' names are below, for --queries.", show_default="none")
    ] = None,
    queries: Annotated[
        list[Path] | None,
        typer.Option(help="List of queries with cameras: pair these with images of the model.", show_default="none"),
    ] = None,
    count: Annotated[int, typer.Option(help="Images that each one is paired with, at most.", min=1)] = 20,
    side: Side = 1024,
    output: File = Path("pairs.txt"),
    quiet: Quiet = False,
) -> None:
    """Pair images of a model that see the same points; or queries with images that look alike."""
    from loftr_ros.evaluation.localisation.lists import LocalisationError, read_queries, write_pairs
    from loftr_ros.evaluation.localisation.reconstruction import covisible_pairs, open_model
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.frontend.pair_matcher import PairMatcher
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.recordings import SourceError
    from loftr_ros.settings import ConfigError
    from loftr_ros.tools.localise import retrieved_pairs, with_side

    missing = list[str]()
    try:
        if not queries:
            found = covisible_pairs(model, count)
        else:
            if images is None:
                fail("--queries needs --images, the folder that the names are below")
            asked = [query.name for query in read_queries(queries)]
            known = sorted(image.name for image in open_model(model).images.values())
            front_end, reader = front_end_options.open()
            matcher = with_side(PairMatcher(front_end.matcher, front_end.config), side)
            found, missing = retrieved_pairs(images, asked, known, count, matcher, reader, not quiet)
        write_pairs(output, found)
    except (ConfigError, DeviceError, LocalisationError, MaskError, SourceError, WeightsError) as error:
        fail(error)
    finish([f"{len(found)} pairs"], missing, f"written to {output}")


@app.command()
@grouped
def match(
    images: Images,
    pairs: Pairs,
    front_end_options: FrontEndOptions,
    output: Output = Path("localisation"),
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Features of the database's images: the other images are queries, whose points are not merged.",
            show_default="none",
        ),
    ] = None,
    both: Both = True,
    side: Side = 1024,
    cell: Annotated[
        float, typer.Option(help="Side of the squares that have one keypoint each, in pixels of the network's image.")
    ] = 2.0,
    max_error: Annotated[
        float, typer.Option(help="Largest distance of a match from its keypoint, in pixels of the network's image.")
    ] = 1.0,
    max_keypoints: Annotated[int, typer.Option(help="Most keypoints of an image of the database; 0 for all.")] = 8192,
    min_matches: MinMatches = MIN_MATCHES,
    quiet: Quiet = False,
) -> None:
    """Match pairs of images, and write hloc's features.h5 and matches.h5 into OUTPUT; run it again to go on."""
    from loftr_ros.evaluation.localisation.hloc_files import require_h5py
    from loftr_ros.evaluation.localisation.lists import LocalisationError, read_pairs
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.frontend.pair_matcher import PairMatcher
    from loftr_ros.frontend.wide_pairs import WideConfig
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.recordings import SourceError
    from loftr_ros.settings import ConfigError
    from loftr_ros.tools.localise import KeypointConfig
    from loftr_ros.tools.localise import match as run

    check_output(output)
    try:
        config = KeypointConfig(cell, max_error, max_keypoints)
        require_h5py()
        listed = read_pairs(pairs)
        front_end, reader = front_end_options.open()
        matcher = PairMatcher(front_end.matcher, front_end.config, WideConfig(min_matches))
        done = run(images, listed, matcher, reader, output, side=side, reference=reference, both=both,
                   config=config, parameters=front_end_options.values | {"mask": front_end_options.mask},
                   progress=not quiet)  # fmt: skip
    except (ConfigError, DeviceError, LocalisationError, MaskError, SourceError, WeightsError) as error:
        fail(error)
    lines = [] if done.interrupted else [
        f"{len(done.pairs)} pairs, median {done.matches:.0f} matches; median {done.keypoints:.0f} keypoints of an image"
    ]  # fmt: skip
    finish(lines, done.missing, f"written to {output}", done.interrupted)


@app.command()
def triangulate(
    model: Model,
    pairs: Pairs,
    features: Features,
    matches: Matches,
    output: Output = Path("sfm"),
    quiet: Quiet = False,
) -> None:
    """Triangulate points of matches from the known poses of MODEL, with COLMAP; OUTPUT is a model with these points."""
    from loftr_ros.evaluation.localisation.lists import LocalisationError, read_pairs
    from loftr_ros.evaluation.localisation.reconstruction import triangulate as run

    check_output(output)
    try:
        text = run(model, read_pairs(pairs), features, matches, output, not quiet)
    except LocalisationError as error:
        fail(error)
    finish([text], [], f"written to {output}")


@app.command()
def queries(
    model: Model,
    pairs: Pairs,
    lists: Annotated[
        list[Path],
        typer.Argument(
            metavar="QUERIES...", help="Lists of queries: `name MODEL width height parameters...`.", show_default=False
        ),
    ],
    features: Features,
    matches: Matches,
    output: File = Path("results.txt"),
    max_error: Annotated[
        float, typer.Option(help="Largest distance of a point from its projected one, in pixels.", min=0.1)
    ] = 12.0,
    name_parts: Annotated[
        int, typer.Option(help="Last parts of a name in the results: 1 for Aachen, 2 for RobotCar, 0 for all.", min=0)
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Find poses of queries by points of MODEL, and write them as visuallocalization.net takes them."""
    from loftr_ros.evaluation.localisation.lists import LocalisationError, read_pairs, read_queries
    from loftr_ros.tools.localise import localise

    check_output(output.parent)
    try:
        asked = read_queries(lists)
        found = localise(model, asked, read_pairs(pairs), features, matches, output, max_error=max_error,
                                  name_parts=name_parts, progress=not quiet)  # fmt: skip
    except LocalisationError as error:
        fail(error)
    finish([found.line(len(asked))], found.missing, f"written to {output}")


@app.command()
def score(
    results: Annotated[Path, typer.Argument(help="File of poses: `name qw qx qy qz tx ty tz`.", show_default=False)],
    truth: Annotated[
        Path, typer.Argument(help="True poses: a file like it, or the folder of a COLMAP model.", show_default=False)
    ],
    queries: Annotated[
        list[Path] | None,
        typer.Option(help="List of the queries that count, if TRUTH has other images too.", show_default="all"),
    ] = None,
    indoor: Annotated[
        bool, typer.Option("--indoor", help="InLoc's thresholds (0.25, 0.5, 1 m; 10 degrees) instead of Aachen's.")
    ] = False,
) -> None:
    """Print the share of queries within 0.25 m and 2 degrees, 0.5 m and 5, 5 m and 10, and by day and night."""
    from loftr_ros.evaluation.localisation.lists import LocalisationError, read_poses, read_queries
    from loftr_ros.evaluation.localisation.recall import (
        INDOOR_THRESHOLDS,
        THRESHOLDS,
        read_truth,
        recalls,
        table,
        truth_of,
    )

    try:
        true = read_truth(truth)
        if queries:
            true = truth_of([query.name for query in read_queries(queries)], true, truth)
        lines = table(recalls(read_poses(results), true), INDOOR_THRESHOLDS if indoor else THRESHOLDS)
    except LocalisationError as error:
        fail(error)
    typer.echo("\n".join(lines))
