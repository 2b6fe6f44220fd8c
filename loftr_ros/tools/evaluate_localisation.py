"""`loftr_ros evaluate` of visual localisation: all steps of `loftr_ros localise` in turn."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from loftr_ros.evaluation.localisation.benchmark import LocalisationSet
from loftr_ros.evaluation.localisation.hloc_files import require_h5py
from loftr_ros.evaluation.localisation.lists import read_pairs, read_queries, write_pairs
from loftr_ros.evaluation.localisation.recall import read_truth, recalls, table_rows, truth_of
from loftr_ros.evaluation.localisation.reconstruction import covisible_pairs, open_model, triangulate
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.evaluate import Evaluation
from loftr_ros.tools.localise import FEATURES, MATCHES, PAIRS, SIDE, localise, match, retrieved_pairs, with_side

# Images that each image of the database, and each query, is paired with, as in hloc's evaluation of LoFTR on Aachen.
_COVISIBLE, _RETRIEVED = 20, 50


def evaluate_localisation(
    benchmark: LocalisationSet,
    matcher: PairMatcher,
    reader: FrameReader,
    output: Path,
    progress: bool = True,
    parameters: Mapping[str, object] | None = None,
) -> Evaluation:
    """Match, triangulate, localise, and score where true poses are there; an interrupted run goes on.

    Args:
        benchmark: see `open_localisation_set`.
        matcher: with its settings.
        reader: makes frames.
        output: an existing folder, for hloc's files (`database`, `queries`), the model (`sfm`) and `results.txt`.
        progress: show bars.
        parameters: see `match`.

    Raises:
        LocalisationError: a file is missing, damaged or cannot be written, or a step fails as a whole.
    """
    require_h5py()
    queries = read_queries(benchmark.queries)
    names = [query.name for query in queries]
    # As few parts of the names as tell the queries apart: one for Aachen.
    parts = next(parts for parts in count(1) if len({tuple(name.split("/")[-parts:]) for name in names}) == len(names))
    truth = None if benchmark.truth is None else read_truth(benchmark.truth)
    known = {image.name for image in open_model(benchmark.model).images.values()} - set(names)
    head, *_ = table_rows([])
    done = Evaluation(f"{benchmark.name}, visual localisation", head)

    def matched(pairs: Path, folder: Path, reference: Path | None) -> bool:
        found = match(benchmark.images, read_pairs(pairs), matcher, reader, folder, reference=reference,
                      parameters=parameters, progress=progress)  # fmt: skip
        done.missing += found.missing
        done.interrupted = found.interrupted
        return not found.interrupted

    database, query = output / "database", output / "queries"
    pairs = benchmark.database_pairs
    if pairs is None:
        pairs = output / "pairs-db.txt"
        write_pairs(pairs, [pair for pair in covisible_pairs(benchmark.model, _COVISIBLE) if known.issuperset(pair)])
    if not matched(pairs, database, None):
        return done
    triangulate(benchmark.model, read_pairs(database / PAIRS), database / FEATURES, database / MATCHES,
                output / "sfm", progress)  # fmt: skip
    pairs = benchmark.query_pairs
    if pairs is None:
        pairs = output / "pairs-query.txt"
        listed, missing = retrieved_pairs(
            benchmark.images, names, sorted(known), _RETRIEVED, with_side(matcher, SIDE), reader, progress
        )
        done.missing += missing
        write_pairs(pairs, listed)
    if not matched(pairs, query, database / FEATURES):
        return done
    found = localise(output / "sfm", queries, read_pairs(query / PAIRS), query / FEATURES,
                              query / MATCHES, output / "results.txt", name_parts=parts,
                      progress=progress)  # fmt: skip
    done.missing += found.missing
    done.title += f"; {found.line(len(names))}"
    if truth is None:
        done.rows.append([f"{len(names)} all", f"{len(found.poses)}", *["-"] * (len(head) - 2)])
        return done
    done.rows += table_rows(recalls(found.poses, truth_of(names, truth, benchmark.truth)))[1:]
    return done
