"""Visual localisation on 7-Scenes: every n-th image with its true pose is the database; some others are queries.

    python3 benchmarks/localisation.py [--data FOLDER] [--output FOLDER] [--step 10] [--every 6]

The recording is laid out as Aachen Day-Night is published, and goes through `loftr_ros evaluate`'s code: pairs by the
place descriptor, matches, triangulation and poses by COLMAP. SIFT (OpenCV; mutual nearest neighbours, ratio 0.8) goes
through the same pairs, triangulation and poses. It needs the extra `localisation`. An interrupted run goes on.

`--rendered` compares settings of keypoints instead: ten views of a rendered room are the database, the nine between
them are queries. Settings were chosen by it.
"""

from __future__ import annotations

import argparse
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from loftr_ros import load_matcher
from loftr_ros.evaluation.localisation.benchmark import open_localisation_set
from loftr_ros.evaluation.localisation.hloc_files import Keypoints, PairMatches, write_features, write_matches
from loftr_ros.evaluation.localisation.lists import (
    Pair,
    Query,
    read_pairs,
    read_poses,
    read_queries,
    write_pairs,
    write_poses,
)
from loftr_ros.evaluation.localisation.recall import Recall, read_truth, recalls, table_rows
from loftr_ros.evaluation.localisation.reconstruction import triangulate
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.tools.evaluate_localisation import evaluate_localisation
from loftr_ros.tools.localise import FEATURES, MATCHES, KeypointConfig, localise, match, retrieved_pairs
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

WIDTH, HEIGHT = 640, 480
# Of 7-Scenes; and the middle of what fits these colour images better, see the data's README.
FOCALS = (585.0, 548.0)
THRESHOLDS = ((0.01, 1.0), (0.05, 5.0), (0.25, 2.0), (0.5, 5.0))
PAIRED = {"db": 10, "query": 5}  # images that each one is paired with
RATIO = 0.8
# Of `--rendered`: cell and max_error; hloc's for LoFTR are 8 and 2.
ROOM, SETTINGS = 3, ((1.0, 0.5), (2.0, 1.0), (2.0, 2.0), (4.0, 2.0), (8.0, 2.0), (8.0, 4.0))


def lay_out(data: Path, folder: Path, focal: float, step: int, every: int) -> None:
    """Write what Aachen's folder has: images, model, queries; and true poses."""
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("images/db", "images/query", "3D-models/sevenscenes", "queries"):
        (folder / kind).mkdir(parents=True)
    # COLMAP's pixels: the published centre (320, 240) is of pixels with (0, 0) at the first one's centre.
    camera = pycolmap.Camera(camera_id=1, model="PINHOLE", width=WIDTH, height=HEIGHT,
                             params=[focal, focal, WIDTH / 2 + 0.5, HEIGHT / 2 + 0.5])  # fmt: skip
    model, truth, queries = pycolmap.Reconstruction(), {}, list[str]()
    model.add_camera_with_trivial_rig(camera)
    for number, image in enumerate(sorted(data.glob("*.color.jpg"))):
        pose = np.linalg.inv(np.loadtxt(str(image).replace(".color.jpg", ".pose.txt")))
        left, _, right = np.linalg.svd(pose[:3, :3])  # the files have few digits
        pose[:3, :3] = left @ right
        if number % step == 0:
            name = f"db/{image.name}"
            model.add_image_with_trivial_frame(
                pycolmap.Image(name=name, camera_id=1, image_id=number + 1), pycolmap.Rigid3d(pose[:3])
            )
        elif number % every == 0 and number % 10:
            name = f"query/{image.name}"
            truth[name] = pose
            queries.append(f"{name} PINHOLE {WIDTH} {HEIGHT} {' '.join(map(str, camera.params))}\n")
        else:
            continue
        (folder / "images" / name).symlink_to(image.resolve())
    model.write(folder / "3D-models" / "sevenscenes")
    (folder / "queries" / "queries_with_intrinsics.txt").write_text("".join(queries))
    write_poses(folder / "truth.txt", truth, 0)


def compare_settings(matcher: PairMatcher, output: Path) -> None:
    """The same matches made keypoints of with different settings, on a walk through a rendered room."""
    shutil.rmtree(output, ignore_errors=True)
    camera, poses, scene = default_camera(WIDTH, HEIGHT), trajectory(228, seed=ROOM)[::12], Scene(ROOM)
    (fx, _, cx), (_, fy, cy), _ = camera.matrix.tolist()
    eye = pycolmap.Camera(camera_id=1, model="PINHOLE", width=WIDTH, height=HEIGHT, params=[fx, fy, cx + 0.5, cy + 0.5])
    model, truth = pycolmap.Reconstruction(), {}
    model.add_camera_with_trivial_rig(eye)
    for folder in ("images", "model"):
        (output / folder).mkdir(parents=True)
    names = [f"{number:02d}.png" for number in range(len(poses))]
    for number, (name, pose) in enumerate(zip(names, poses, strict=True)):
        cv2.imwrite(str(output / "images" / name), scene.render(camera, pose).image)
        seen = np.linalg.inv(pose)
        if number % 2:
            truth[name] = seen
        else:
            image = pycolmap.Image(name=name, camera_id=1, image_id=number + 1)
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(seen[:3]))
    model.write(output / "model")
    queries = [Query(name, "PINHOLE", WIDTH, HEIGHT, tuple(eye.params)) for name in truth]
    count = len(names)
    pairs = [(names[k], names[m]) for k in range(0, count, 2) for m in range(k + 2, min(k + 7, count), 2)]
    asked = [(names[k], names[m]) for k in range(1, count, 2) for m in (k - 3, k - 1, k + 1, k + 3) if 0 <= m < count]
    print("| directions | cell | max error | points | pixels off | median mm | median deg | 1 cm, 1 deg |")
    print("|" + " --- |" * 8)
    for both, (cell, error) in product((False, True), SETTINGS):
        folder, config = output / f"{both}", KeypointConfig(cell, error)
        database, query = folder / "database", folder / "queries"
        match(output / "images", pairs, matcher, FrameReader(), database, both=both, config=config, progress=False)
        files = [database / FEATURES, database / MATCHES]
        text = triangulate(output / "model", pairs, *files, folder / "sfm", False)
        match(output / "images", asked, matcher, FrameReader(), query, both=both, config=config, reference=files[0],
              progress=False)  # fmt: skip
        found = localise(folder / "sfm", queries, asked, query / FEATURES, query / MATCHES, folder / "results.txt",
                         progress=False)  # fmt: skip
        errors = recalls(found.poses, truth)[0]
        _, points, _, off = text.split(", ")
        print(f"| {1 + both} | {cell:g} | {error:g} | {points.split()[0]} | {off.split()[0]} | "
              f"{1e3 * np.median(errors.metres):.2f} | "
              f"{np.median(errors.degrees):.4f} | {errors.within(0.01, 1):.1f} % |", flush=True)  # fmt: skip


def sift(folder: Path, pairs_db: Path, pairs_query: Path, output: Path) -> list[Recall]:
    """The same localisation by SIFT's matches."""
    benchmark = open_localisation_set(folder)
    assert benchmark is not None
    detector, found = cv2.SIFT_create(8192), dict[str, tuple[Keypoints, np.ndarray]]()

    def features(name: str) -> tuple[Keypoints, np.ndarray]:
        if name not in found:
            points, described = detector.detectAndCompute(cv2.imread(str(benchmark.images / name), 0), None)
            held = Keypoints(np.float32([each.pt for each in points]), np.float32([each.response for each in points]))
            found[name] = held, described
        return found[name]

    def matched(pairs: list[Pair]) -> Iterator[tuple[Pair, int, PairMatches]]:
        for pair in pairs:
            (points, one), (_, other) = (features(name) for name in pair)
            there, back = (cv2.BFMatcher().knnMatch(a, b, k=2) for a, b in ((one, other), (other, one)))
            best = {each[0].queryIdx: each[0].trainIdx for each in back}
            index = [
                (first.queryIdx, first.trainIdx) for first, second in there
                if first.distance < RATIO * second.distance and best[first.trainIdx] == first.queryIdx
            ]  # fmt: skip
            yield pair, len(points.points), PairMatches(np.array(index, np.int64).reshape(-1, 2), np.ones(len(index)))

    database, asked = read_pairs(pairs_db), read_pairs(pairs_query)
    write_matches(output / "matches-db.h5", matched(database))
    write_matches(output / "matches-query.h5", matched(asked))
    write_features(output / "features.h5", ((name, held) for name, (held, _) in found.items()))
    files = output / "features.h5", output / "matches-db.h5"
    print(f"SIFT's model: {triangulate(benchmark.model, database, *files, output / 'sfm', False)}")
    queries: list[Query] = read_queries(benchmark.queries)
    localised = localise(output / "sfm", queries, asked, output / "features.h5", output / "matches-query.h5",
                        output / "results.txt", progress=False)  # fmt: skip
    return recalls(localised.poses, read_truth(folder / "truth.txt"))


def report(name: str, focal: float, rows: list[list[str]]) -> None:
    print(f"| {name} | {focal:g} | " + " | ".join(rows[1]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sevenscenes"))
    parser.add_argument("--output", type=Path, default=Path("localisation"))
    parser.add_argument("--step", type=int, default=10, help="the database is every n-th image, a multiple of ten")
    parser.add_argument("--every", type=int, default=6, help="a query is every n-th image but the tenth ones")
    parser.add_argument("--rendered", action="store_true", help="compare settings on a rendered room")
    parser.add_argument("--network", default="compact")
    parser.add_argument("--weights", default="")
    given = parser.parse_args()
    matcher = PairMatcher(load_matcher(given.weights, network=given.network))
    reader = FrameReader()
    print(f"benchmarks/localisation.py, {platform.machine()}, pycolmap {version('pycolmap')}")
    if given.rendered:
        compare_settings(matcher, given.output / "rendered")
        return
    head = table_rows([], THRESHOLDS)[0]
    print("| matches | focal length | " + " | ".join(head) + " |")
    print("|" + " --- |" * (len(head) + 2))
    for focal in FOCALS:
        folder, output = given.output / f"{given.step}-f{focal:g}", given.output / given.network
        lay_out(given.data, folder, focal, given.step, given.every)
        database = sorted(f"db/{path.name}" for path in (folder / "images" / "db").iterdir())
        queries = [query.name for query in read_queries([folder / "queries" / "queries_with_intrinsics.txt"])]
        for kind, names in (("db", database), ("query", queries)):
            pairs, _ = retrieved_pairs(folder / "images", names, database, PAIRED[kind], matcher, reader, False)
            write_pairs(folder / f"pairs-{kind}-retrieved.txt", pairs)
        benchmark = open_localisation_set(folder)
        assert benchmark is not None
        output.mkdir(parents=True, exist_ok=True)
        evaluate_localisation(benchmark, matcher, reader, output, False)
        found = recalls(read_poses(output / "results.txt"), read_truth(folder / "truth.txt"))
        report(given.network, focal, table_rows(found, THRESHOLDS))
        lists = [folder / f"pairs-{kind}-retrieved.txt" for kind in ("db", "query")]
        report("SIFT", focal, table_rows(sift(folder, *lists, given.output / "sift"), THRESHOLDS))


if __name__ == "__main__":
    main()
