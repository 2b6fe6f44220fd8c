"""`loftr_ros evaluate`: published benchmarks from their published folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import check_output, fail, finish
from loftr_ros.cli.options import (
    MIN_MATCHES,
    BackEndParamsFile,
    FrontEndOptions,
    MinMatches,
    Output,
    Quiet,
    RecordingOptions,
    back_end_config,
    grouped,
)

Folders = Annotated[
    list[Path],
    typer.Argument(
        help="Folders of benchmarks: trajectories of KITTI odometry, EuRoC, TUM-VI, TUM RGB-D, 7-Scenes, ICL-NUIM or "
        "TartanAir, one recording or the data set's root; pairs of HPatches, ScanNet-1500 or MegaDepth-1500; or visual "
        "localisation on Aachen Day-Night v1.1."
    ),
]


@grouped
def evaluate(
    folders: Folders,
    reading: RecordingOptions,
    front_end_options: FrontEndOptions,
    output: Output = Path("evaluation"),
    optimise: Annotated[
        bool, typer.Option("--optimise", help="Of trajectories also those of the back end (needs GTSAM).")
    ] = False,
    back_end_params_file: BackEndParamsFile = None,
    min_matches: MinMatches = MIN_MATCHES,
    quiet: Quiet = False,
) -> None:
    """Evaluate published benchmarks: ATE and RPE as evo's, t_rel and r_rel as KITTI's, AUC and recall as LoFTR's."""
    from loftr_ros.backend.measurements import BackEndError
    from loftr_ros.evaluation.localisation.benchmark import open_localisation_set
    from loftr_ros.evaluation.localisation.lists import LocalisationError
    from loftr_ros.evaluation.pair_sets import PairSetError, open_pair_set
    from loftr_ros.frontend.mask import MaskError
    from loftr_ros.frontend.pair_matcher import PairMatcher
    from loftr_ros.frontend.wide_pairs import WideConfig
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.places.config import LoopConfig
    from loftr_ros.places.keyframe import PlacesError
    from loftr_ros.recordings import SourceError
    from loftr_ros.settings import ConfigError, with_values
    from loftr_ros.tools.evaluate import (
        TRAJECTORY_COLUMNS,
        Evaluation,
        evaluate_pairs,
        evaluate_recording,
        recordings_in,
        unshrunk,
    )
    from loftr_ros.tools.evaluate_localisation import evaluate_localisation

    for folder in folders:
        if not folder.is_dir():
            fail(f"{folder} is no folder")
    check_output(output)
    try:
        places = {folder: found for folder in folders if (found := open_localisation_set(folder)) is not None}
        sets = [(folder, open_pair_set(folder), recordings_in(folder)) for folder in folders if folder not in places]
        for folder, pairs, recordings in sets:
            if pairs is None and not recordings:
                fail(f"{folder} holds none of the known benchmarks, see docs/evaluate.md")
        front_end, reader = front_end_options.open()
        loop = with_values(LoopConfig(), front_end_options.values, "loop.")
        output.mkdir(parents=True, exist_ok=True)
        tables = list[Evaluation]()
        for folder, benchmark in places.items():
            place = output / folder.resolve().name
            place.mkdir(exist_ok=True)
            matcher = PairMatcher(front_end.matcher, front_end.config, WideConfig(min_matches))
            given = front_end_options.values | {"mask": front_end_options.mask}
            tables.append(evaluate_localisation(benchmark, matcher, reader, place, not quiet, given))
            tables[-1].write(place)
            if tables[-1].interrupted:
                sets = []
                break
        trajectories = Evaluation("Trajectories", TRAJECTORY_COLUMNS)
        for folder, pairs, recordings in sets:
            if pairs is not None:
                place = output / folder.resolve().name
                place.mkdir(exist_ok=True)
                matcher = PairMatcher(front_end.matcher, unshrunk(front_end.config), WideConfig(min_matches))
                tables.append(evaluate_pairs(pairs, matcher, reader, place, not quiet))
                tables[-1].write(place)
            for path in [] if pairs is not None else recordings:
                name = "_".join([folder.resolve().name, *path.relative_to(folder).parts])
                try:
                    with reading.open(str(path)) as source:
                        evaluate_recording(name, source, front_end, reader, output / name, trajectories,
                                           progress=not quiet, optimise=optimise, loop=loop,
                                           back_end=back_end_config(back_end_params_file))  # fmt: skip
                except SourceError as error:
                    if len(folders) == len(recordings) == 1:
                        raise
                    trajectories.missing.append(f"{name}: {error}")
                if trajectories.interrupted:
                    break
        if trajectories.rows or trajectories.missing:
            trajectories.write(output)
            tables.append(trajectories)
    except (BackEndError, ConfigError, DeviceError, LocalisationError, MaskError, PairSetError, PlacesError,
            SourceError, WeightsError) as error:  # fmt: skip
        fail(error)
    lines = [line for table in tables for line in (*table.lines(), "")]
    missing = [reason for table in tables for reason in table.missing]
    finish(lines, missing, f"written to {output}", any(table.interrupted for table in tables))
