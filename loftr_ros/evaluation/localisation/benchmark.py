"""A published benchmark of visual localisation in its folder: that of Aachen Day-Night, or another one laid out so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loftr_ros.evaluation.localisation.lists import LocalisationError
from loftr_ros.evaluation.localisation.reconstruction import is_model

_IMAGES = ("images_upright", "images")
_MODELS = "3D-models"
_QUERIES = "*_with_intrinsics.txt"
_TRUTH = ("truth", "truth.txt")


@dataclass(frozen=True)
class LocalisationSet:
    """Paths of a benchmark.

    Attributes:
        name: of its folder.
        images: folder that names are below.
        model: folder of COLMAP's model of the database's images.
        queries: lists of queries with cameras.
        database_pairs, query_pairs: lists of pairs; None to make them.
        truth: true poses of the queries, a file or a folder; None where they are not published.
    """

    name: str
    images: Path
    model: Path
    queries: tuple[Path, ...]
    database_pairs: Path | None
    query_pairs: Path | None
    truth: Path | None


def open_localisation_set(folder: Path) -> LocalisationSet | None:
    """The benchmark in a folder; None if there is none.

    Raises:
        LocalisationError: there is one, but a part of it is missing or there several times.
    """
    queries = tuple(sorted((folder / "queries").glob(_QUERIES)))
    models = folder / _MODELS
    if not queries or not models.is_dir():
        return None
    images = next((folder / name for name in _IMAGES if (folder / name).is_dir()), None)
    if images is None:
        raise LocalisationError(f"{folder} lacks the folder of images: {' or '.join(_IMAGES)}")
    found = [each for each in (models, *sorted(models.iterdir())) if is_model(each)]
    if len(found) != 1:
        raise LocalisationError(
            f"{models} holds {len(found) or 'no'} models of COLMAP (cameras, images and points3D, .bin or .txt) at its "
            "top or in its folders; expected one"
        )
    pairs = list[Path | None]()
    for kind in ("db", "query"):
        lists = sorted(folder.glob(f"pairs-{kind}-*.txt"))
        if len(lists) > 1:
            raise LocalisationError(f"{folder} holds {len(lists)} lists of pairs pairs-{kind}-*.txt; keep one of them")
        pairs.append(lists[0] if lists else None)
    truth = next((folder / name for name in _TRUTH if (folder / name).exists()), None)
    return LocalisationSet(folder.resolve().name, images, found[0], queries, pairs[0], pairs[1], truth)
