"""Visual localisation: a rendered room laid out as Aachen Day-Night, hloc's files, COLMAP's points and poses."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import rendered_pair
from scipy.spatial import KDTree
from typer.testing import CliRunner

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
    read_pairs,
    read_poses,
    read_queries,
    write_poses,
)
from loftr_ros.evaluation.localisation.pair_store import PairStore, RawMatches
from loftr_ros.evaluation.localisation.recall import read_truth, recalls
from loftr_ros.geometry.se3 import rotation_matrix

h5py = pytest.importorskip("h5py")
pycolmap = pytest.importorskip("pycolmap")

DATABASE, QUERIES = (0, 2, 4, 6), {1: "day/phone", 3: "night/phone", 5: "day/camera"}
CAMERA = "PINHOLE 320 240 260 260 160 120"  # COLMAP's pixels have (0.5, 0.5) at the first one's centre
# No more effort for pairs with few matches, to save time: the views are near each other.
QUICKLY = ("--quiet", "--min-matches", "0")
# For tests of files alone: a small network, which finds nothing.
FILES_ALONE = (*QUICKLY, "--network", "coarse_lite", "--weights", "random")


def name_of(number: int) -> str:
    folder = f"query/{QUERIES[number]}" if number in QUERIES else "db"
    return f"{folder}/{number}.png"


def loftr_ros(*arguments: object, code: int = 0) -> str:
    from loftr_ros.cli.main import app

    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == code, done.output
    return done.output


def true_pose(number: int) -> np.ndarray:
    """(4, 4) T_camera_world."""
    return np.linalg.inv(rendered_pair.POSES[number])


def write_model(folder: Path) -> None:
    """The database's images in COLMAP's text format."""
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"7 {CAMERA}\n")
    (folder / "points3D.txt").write_text("")
    write_poses(folder / "poses.txt", {name_of(number): true_pose(number) for number in DATABASE}, 0)
    rows = (line.split() for line in (folder / "poses.txt").read_text().splitlines())
    (folder / "images.txt").write_text(
        "".join(f"{number + 3} {' '.join(row[1:])} 7 {row[0]}\n\n" for number, row in enumerate(rows))
    )


@pytest.fixture(scope="module")
def aachen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as Aachen v1.1 with hloc's lists of pairs, and with true poses."""
    folder = tmp_path_factory.mktemp("localise") / "aachen_v1.1"
    for number, view in enumerate(rendered_pair.views()):
        file = folder / "images_upright" / name_of(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        image = view.image // 3 if "night" in name_of(number) else view.image
        assert cv2.imwrite(str(file), image)
    write_model(folder / "3D-models" / "aachen_v_1_1")
    (folder / "queries").mkdir()
    for time in ("day", "night"):
        names = [name_of(number) for number in QUERIES if time in name_of(number)]
        lines = "".join(f"{name} {CAMERA}\n" for name in names)
        (folder / "queries" / f"{time}_time_queries_with_intrinsics.txt").write_text(lines)
    pairs = [(name_of(one), name_of(other)) for one in DATABASE for other in DATABASE if one != other]
    (folder / "pairs-db-covis20.txt").write_text("".join(f"{one} {other}\n" for one, other in pairs))
    pairs = [(name_of(query), name_of(number)) for query in QUERIES for number in (query - 1, query + 1)]
    (folder / "pairs-query-netvlad50.txt").write_text("".join(f"{one} {other}\n" for one, other in pairs))
    write_poses(folder / "truth.txt", {name_of(number): true_pose(number) for number in QUERIES}, 0)
    return folder


@pytest.fixture(scope="module")
def evaluated(aachen: Path) -> tuple[Path, str]:
    """What `loftr_ros evaluate` wrote for it, and what it said."""
    output = aachen.parent / "out"
    said = loftr_ros("evaluate", aachen, "-o", output, *QUICKLY)
    return output / "aachen_v1.1", said


def test_queries_by_day_and_night_are_localised_to_a_centimetre(evaluated: tuple[Path, str]) -> None:
    output, said = evaluated
    found = read_poses(output / "results.txt")
    assert sorted(found) == ["1.png", "3.png", "5.png"], "the site wants file names without their folders"
    for number in QUERIES:
        moved = true_pose(number) @ np.linalg.inv(found[f"{number}.png"])
        angle = np.degrees(np.linalg.norm(cv2.Rodrigues(moved[:3, :3])[0]))
        # Half a pixel, as of a wrong origin of pixels, would be 0.11 degrees.
        assert np.linalg.norm(moved[:3, 3]) < 0.01 and angle < 0.09, (number, angle, moved)
    for condition in ("3 all | 3", "2 day | 2", "1 night | 1"):
        assert f"| {condition} | " in said
    assert said.count("| 100.0 % | 100.0 % | 100.0 % |") == 3, said
    assert said.startswith((output / "table.md").read_text())


def test_triangulated_points_are_where_the_room_is_and_poses_stay(evaluated: tuple[Path, str]) -> None:
    model = pycolmap.Reconstruction(evaluated[0] / "sfm")
    assert model.num_points3D() > 300
    errors = []
    for image in model.images.values():
        number = int(Path(image.name).stem)
        np.testing.assert_allclose(image.cam_from_world().matrix(), true_pose(number)[:3], atol=1e-9)
        with HlocFile(evaluated[0] / "database" / "features.h5") as file:
            keypoints = file.keypoints(image.name).points
        pixels = np.array([point.xy for point in image.points2D])
        np.testing.assert_allclose(pixels - 0.5, keypoints, atol=1e-4)
        for point in image.get_observation_points2D():
            seen = true_pose(number) @ np.append(model.points3D[point.point3D_id].xyz, 1)
            column, row = np.floor(point.xy).astype(int)
            errors.append(abs(seen[2] - rendered_pair.views()[number].depth[row, column]) / seen[2])
    assert model.cameras[7].params.tolist() == [260, 260, 160, 120]
    assert np.median(errors) < 0.01, np.median(errors)


def test_an_interrupted_run_matches_only_what_is_missing(evaluated: tuple[Path, str], aachen: Path) -> None:
    output, said = evaluated
    stored = sorted((output / "queries" / "pairs").glob("*/*.npz"))
    stored[0].unlink()
    before = {file: file.stat().st_mtime_ns for file in stored[1:]}
    again = loftr_ros("evaluate", aachen, "-o", output.parent, *QUICKLY)
    assert {file: file.stat().st_mtime_ns for file in stored[1:]} == before and stored[0].is_file()
    assert again == said
    refused = loftr_ros("evaluate", aachen, "-o", output.parent, "--quiet", "--min-matches", "5", code=2)
    assert "matches of other settings (min_matches)" in refused


def test_ctrl_c_keeps_the_matches_so_far(aachen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loftr_ros.tools import localise

    matched, whole = list[object](), localise._match_pair

    def match_pair(*arguments: object) -> RawMatches:
        if len(matched) == 1 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        matched.append(arguments)
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(localise, "_match_pair", match_pair)
    (tmp_path / "pairs.txt").write_text(f"{name_of(0)} {name_of(2)}\n{name_of(2)} {name_of(4)}\n")
    command = ["localise", "match", aachen / "images_upright", tmp_path / "pairs.txt", "-o", tmp_path / "out",
               "--one-way", *FILES_ALONE]  # fmt: skip
    said = loftr_ros(*command, code=130)
    assert "stopped by Ctrl-C after 1 of 2 pairs" in said and not (tmp_path / "out" / "matches.h5").exists()
    (tmp_path / "again").touch()
    assert "2 pairs, median " in loftr_ros(*command) and len(matched) == 2


def some(queries: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A few of the matches of query 1 with an image of the database."""
    with HlocFile(queries / "matches.h5") as file:
        matches = file.matches((name_of(1), name_of(number)))
    step = max(1, len(matches.scores) // 14)
    return matches.index[::step][:14], matches.scores[::step][:14]


def test_the_steps_one_by_one_do_the_same(evaluated: tuple[Path, str], aachen: Path, tmp_path: Path) -> None:
    database, queries = evaluated[0] / "database", evaluated[0] / "queries"
    sfm, results = tmp_path / "sfm", tmp_path / "results.txt"
    said = loftr_ros("localise", "triangulate", aachen / "3D-models" / "aachen_v_1_1", database / "pairs.txt",
                     "--features", database / "features.h5", "--matches", database / "matches.h5", "-o", sfm,
                     "-q")  # fmt: skip
    assert "4 images, " in said
    lists = sorted((aachen / "queries").iterdir())
    loftr_ros("localise", "queries", sfm, queries / "pairs.txt", *lists, "--features", queries / "features.h5",
              "--matches", queries / "matches.h5", "-o", results, "--name-parts", 0, "-q")  # fmt: skip
    assert sorted(read_poses(results)) == [name_of(number) for number in sorted(QUERIES, key=name_of)]
    assert (tmp_path / "results.csv").read_text().startswith("query,correspondences,inliers\nquery/day/phone/1.png,")
    with lists[0].open("a") as file:
        file.write(f"query/day/none.png {CAMERA}\n")
    said = loftr_ros("localise", "queries", sfm, queries / "pairs.txt", lists[0], "--features",
                     queries / "features.h5", "--matches", queries / "matches.h5", "-o", tmp_path / "some.txt", "-q",
                     code=1)  # fmt: skip
    lists[0].write_text("".join(lists[0].read_text().splitlines(keepends=True)[:-1]))
    assert "2 of 3 queries have a pose\n" in said and "missing: query/day/none.png is in no pair" in said
    assert len(read_poses(tmp_path / "some.txt")) == 2
    few = [((name_of(1), name_of(number)), 100000, PairMatches(*some(queries, number))) for number in (0, 2)]
    write_matches(tmp_path / "few.h5", few)
    (tmp_path / "one.txt").write_text(f"{name_of(1)} {CAMERA}\n")
    said = loftr_ros("localise", "queries", sfm, queries / "pairs.txt", tmp_path / "one.txt", "--features",
                     queries / "features.h5", "--matches", tmp_path / "few.h5", "-o", tmp_path / "one_pose.txt",
                     "-q")  # fmt: skip
    assert "1 of 1 queries have a pose, 1 of them doubtful: less than 30 inliers" in said
    assert "| 3 all | 3 | 100.0 %" in loftr_ros("localise", "score", results, aachen / "truth.txt")
    loftr_ros("localise", "pairs", sfm, "--count", 1, "-o", tmp_path / "covisible.txt")
    points = {
        image.name: {point.point3D_id for point in image.get_observation_points2D()}
        for image in pycolmap.Reconstruction(sfm).images.values()
    }
    best = {
        frozenset((name, max(set(points) - {name}, key=lambda other: len(seen & points[other]))))
        for name, seen in points.items()
    }
    assert {frozenset(pair) for pair in read_pairs(tmp_path / "covisible.txt")} == best
    loftr_ros("localise", "pairs", sfm, "--queries", lists[0], "--images", aachen / "images_upright", "--count", 1,
              "-o", tmp_path / "alike.txt", "-q")  # fmt: skip
    alike = dict(read_pairs(tmp_path / "alike.txt"))
    assert alike[name_of(1)] in (name_of(0), name_of(2)) and alike[name_of(5)] in (name_of(4), name_of(6))


def test_a_pair_without_its_image_is_left_out_and_reported(aachen: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text(f"{name_of(0)} {name_of(2)}\n{name_of(0)} db/none.png\ndb/broken.png {name_of(0)}\n")
    (tmp_path / "images").symlink_to(aachen / "images_upright")
    broken = aachen / "images_upright" / "db" / "broken.png"
    broken.write_bytes(b"no image")
    said = loftr_ros("localise", "match", tmp_path / "images", pairs, "-o", tmp_path / "out", *FILES_ALONE, code=1)
    broken.unlink()
    assert "missing: db/none.png: there is no such image" in said and "missing: db/broken.png" in said
    assert read_pairs(tmp_path / "out" / "pairs.txt") == [(name_of(0), name_of(2))]
    with h5py.File(tmp_path / "out" / "matches.h5") as file:
        assert list(file) == ["db-0.png"] and list(file["db-0.png"]) == ["db-2.png"]
    said = loftr_ros("localise", "match", tmp_path, pairs, "-o", tmp_path / "other", *FILES_ALONE, code=2)
    assert "of 3 pairs none has both images" in said


def test_files_have_hlocs_layout_in_either_order_of_a_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (5, 2)).astype(np.float32)
    write_features(tmp_path / "f.h5", [("a/b.jpg", Keypoints(points, np.ones(5, np.float32), 1.5))])
    index = np.array([[1, 4], [3, 0]])
    write_matches(tmp_path / "m.h5", [(("a/b.jpg", "c.jpg"), 5, PairMatches(index, np.float32([0.5, 0.25])))])
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["a/b.jpg/keypoints"].dtype == np.float32 and file["a/b.jpg/scores"].shape == (5,)
        assert file["a/b.jpg"]["keypoints"].attrs["uncertainty"] == 1.5
        np.testing.assert_array_equal(file["a/b.jpg/keypoints"], points)
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["a-b.jpg/c.jpg/matches0"][:].tolist() == [-1, 4, -1, 0, -1]
        assert file["a-b.jpg/c.jpg/matching_scores0"][:].tolist() == [0, 0.5, 0, 0.25, 0]
    with HlocFile(tmp_path / "m.h5") as file:
        assert file.matches(("c.jpg", "a/b.jpg")).index.tolist() == [[4, 1], [0, 3]]
        with pytest.raises(LocalisationError, match=r"no matches of c\.jpg with d\.jpg"):
            file.matches(("c.jpg", "d.jpg"))
    with HlocFile(tmp_path / "f.h5") as file:
        assert file.images() == {"a/b.jpg"}
        with pytest.raises(LocalisationError, match=r"no keypoints of c\.jpg"):
            file.keypoints("c.jpg")
    with pytest.raises(LocalisationError, match=r"a-b\.jpg and a/b\.jpg have one name"):
        check_names(["a-b.jpg", "a/b.jpg"])


def test_a_file_that_cannot_be_written_or_read_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f.h5" / "in the way").mkdir(parents=True)
    with pytest.raises(LocalisationError, match=r"f\.h5 cannot be written"):
        write_features(tmp_path / "f.h5", [])
    assert [each.name for each in tmp_path.iterdir()] == ["f.h5"]
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    empty = np.zeros((0, 2), np.float32)
    with pytest.raises(LocalisationError, match=r"g\.h5 cannot be written: No space left"):
        write_features(tmp_path / "g.h5", [("a.jpg", Keypoints(empty, empty[:, 0]))])
    assert [each.name for each in tmp_path.iterdir()] == ["f.h5"]
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n cut")
    for name, why in (("none.h5", "there is no such file"), ("cut.h5", "no intact HDF5 file")):
        with pytest.raises(LocalisationError, match=why):
            HlocFile(tmp_path / name)
    store = PairStore(tmp_path / "pairs", {"network": "a"})
    store.put(("a", "b"), RawMatches(empty, empty, np.zeros(0, np.float32), 1, 1))
    (file,) = (tmp_path / "pairs").glob("*/*.npz")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(LocalisationError, match="remove it to match this pair anew"):
        store.get(("a", "b"))


def test_a_cell_keeps_its_most_frequent_point_and_matches_take_the_nearest_one() -> None:
    rng = np.random.default_rng(1)
    fixed = np.stack(np.meshgrid(np.arange(3.5, 100, 8), np.arange(3.5, 60, 8)), axis=2).reshape(-1, 2)
    noisy = fixed + rng.normal(0, 0.8, (3, *fixed.shape))
    points = np.concatenate([fixed, fixed, fixed, *noisy]).astype(np.float32)
    keypoints, scores = merging.merge(points, np.ones(len(points), np.float32), 8.0)
    assert len(keypoints) == len(fixed) and (scores >= 3).all()
    assert KDTree(fixed).query(keypoints)[0].max() < 1e-6, "the point of three pairs"
    keypoints, _ = merging.merge(points, np.ones(len(points), np.float32), 2.0)
    for limit in (0.3, 1.0, 5.0):
        distance, index = KDTree(keypoints).query(points)
        index[distance > limit] = -1
        np.testing.assert_array_equal(merging.nearest(points, keypoints, limit), index)
    best, scores = merging.merge(points, np.ones(len(points), np.float32), 2.0, most=20)
    assert len(best) == 20 and scores.min() >= 3
    assert (merging.nearest(points, np.zeros((0, 2), np.float32), 1.0) == -1).all()
    assert merging.merge(points[:0], points[:0, 0], 2.0)[0].shape == (0, 2)


def test_no_two_matches_share_a_keypoint_and_the_best_one_stays() -> None:
    index0, index1 = np.array([0, 0, 1, 2, -1]), np.array([5, 6, 6, 7, 8])
    kept = merging.one_to_one(index0, index1, np.array([0.5, 0.9, 0.8, 0.1, 1.0]))
    assert kept.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (read_pairs, "a b\na\n", "line 2 has 1 entries"),
        (read_pairs, "a a\n", "line 1 pairs a with itself"),
        (read_pairs, "a ../b\n", "line 1: ../b is no path below"),
        (read_pairs, "\n# nothing\n", "holds no pairs"),
        (lambda file: read_queries([file]), "a PINHOLE 640 480 500 500 320\n", "PINHOLE has 4 parameters, and 3 are"),
        (lambda file: read_queries([file]), "a HOLE 640 480 500\n", "HOLE is no camera model"),
        (lambda file: read_queries([file]), "a SIMPLE_PINHOLE 640 480 x 1 1\n", "line 1: could not convert"),
        (lambda file: read_queries([file]), "a SIMPLE_PINHOLE 640 0.5 1 1 1\n", "line 1: width and height"),
        (read_poses, "a 1 0 0 0 0 0\n", "line 1 has 7 entries"),
        (read_poses, "a 1 1 0 0 0 0 0\n", "has length 1.41421"),
        (read_poses, "a 1 0 0 0 0 nan 0\n", "not finite"),
        (read_poses, "a 1 0 0 0 0 0 0\na 1 0 0 0 0 0 0\n", "line 2: a is listed twice"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(read: object, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(LocalisationError, match=said):
        read(tmp_path / "list.txt")  # type: ignore[operator]


def test_pairs_listed_in_both_orders_are_one(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("b a\na b\nb c\nb a\n")
    assert read_pairs(tmp_path / "pairs.txt") == [("b", "a"), ("b", "c")]


def test_recalls_count_metres_and_degrees_and_what_is_missing(tmp_path: Path) -> None:
    """Errors made on purpose, of a camera far from the origin."""
    true = np.eye(4)
    true[:3, :3], true[:3, 3] = rotation_matrix([0.3, -1.0, 0.2]), [100, -50, 20]
    errors = {"query/day/a.jpg": (0.2, 1.0), "query/day/b.jpg": (0.2, 3.0), "query/night/c.jpg": (4.0, 9.0)}
    found = {}
    for name, (metres, degrees) in errors.items():
        turn = np.eye(4)
        turn[:3, :3] = rotation_matrix(np.radians(degrees) * np.array([0, 0.6, 0.8]))
        away = np.eye(4)
        away[:3, 3] = metres * np.array([0.6, 0.8, 0])
        found[name] = np.linalg.inv(away @ np.linalg.inv(turn @ true))
    write_poses(tmp_path / "results.txt", found)
    write_poses(tmp_path / "truth.txt", dict.fromkeys([*errors, "query/night/d.jpg"], true), 0)
    everything, day, night = recalls(read_poses(tmp_path / "results.txt"), read_truth(tmp_path / "truth.txt"))
    np.testing.assert_allclose(everything.metres, [0.2, 0.2, 4.0, np.inf], atol=1e-6)
    np.testing.assert_allclose(everything.degrees, [1, 3, 9, np.inf], atol=1e-6)
    limits = ((0.25, 2), (0.5, 5), (5, 10))
    assert [everything.within(*each) for each in limits] == [25, 50, 75] and everything.localised == 3
    assert [day.within(*each) for each in limits] == [50, 100, 100]
    assert [night.within(*each) for each in limits] == [0, 0, 50]
    with pytest.raises(LocalisationError, match=r"x\.jpg has no true pose"):
        recalls({"x.jpg": true}, {"a.jpg": true})
    with pytest.raises(LocalisationError, match=r"a\.jpg may be each of"):
        recalls({"a.jpg": true}, {"d/a.jpg": true, "e/a.jpg": true})
    with pytest.raises(LocalisationError, match=r"would both be called a\.jpg"):
        write_poses(tmp_path / "results.txt", {"d/a.jpg": true, "e/a.jpg": true})


def test_files_that_do_not_belong_together_are_refused(
    evaluated: tuple[Path, str], aachen: Path, tmp_path: Path
) -> None:
    output = evaluated[0]
    command = ["localise", "triangulate", aachen / "3D-models" / "aachen_v_1_1", output / "database" / "pairs.txt"]
    before = sorted(command[2].iterdir())
    write_features(
        tmp_path / "f.h5",
        [(name_of(number), Keypoints(np.ones((3, 2), np.float32), np.ones(3, np.float32))) for number in DATABASE],
    )
    said = loftr_ros(*command, "--features", tmp_path / "f.h5", "--matches", output / "database" / "matches.h5",
                     "-o", tmp_path / "sfm", "-q", code=2)  # fmt: skip
    assert "do not belong together" in said.replace("\n", " ")
    assert not list(tmp_path.glob("sfm*")), "nothing half done is left"
    files = ("--features", output / "database" / "features.h5", "--matches", output / "database" / "matches.h5")
    said = loftr_ros(*command, *files, "-o", command[2], "-q", code=2)
    assert "was not made by this command" in said and sorted(command[2].iterdir()) == before
    said = loftr_ros("localise", "triangulate", tmp_path, tmp_path / "none.txt", "--features", tmp_path, "--matches",
                     tmp_path, "-o", tmp_path / "sfm", code=2)  # fmt: skip
    assert "none.txt cannot be read" in said


@pytest.mark.parametrize(("module", "what"), [("pycolmap", "localisation needs pycolmap"), ("h5py", "h5py is not")])
def test_a_missing_package_is_named_with_how_to_install_it(
    module: str, what: str, aachen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    said = loftr_ros("evaluate", aachen, "-o", tmp_path / "out", *FILES_ALONE, code=2)
    assert what in said and "loftr_ros[localisation]" in said
