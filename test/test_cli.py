"""The command line: input, output and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from loftr_ros.cli.main import app
from loftr_ros.cli.options import back_end_config
from loftr_ros.matcher.config import COARSE_LITE
from loftr_ros.matcher.loftr.network import LoFTR

PROGRAM = Path(sys.executable).parent / "loftr_ros"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder, and find no weights except the given ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOFTR_ROS_WEIGHTS", raising=False)


def loftr_ros(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights: they load, and match next to nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pt"
    torch.save(LoFTR(COARSE_LITE).state_dict(), path)
    return path


def test_the_installed_program_shows_its_commands_and_ends_in_one_line_with_what_cannot_be_done() -> None:
    overview = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, timeout=100, check=False)
    assert overview.returncode == 0
    for command in ("demo", "loops", "node", "play", "run"):
        assert command in overview.stdout
    command = [PROGRAM, "run", "nowhere", "--weights", "random"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert refused.returncode == 2
    assert "nowhere does not exist" in refused.stderr and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["demo", "explain", "export", "loops", "node", "play", "run", "view"])
def test_every_sub_command_explains_itself(command: str) -> None:
    done = loftr_ros(command, "--help")
    assert done.exit_code == 0
    assert command in done.output


def test_a_run_over_real_video_writes_all_that_it_says(shared_data: Path, tmp_path: Path) -> None:
    student = shared_data / "coarse_loftr" / "LoFTR_teacher.pt"
    source, out = shared_data / "kitti06_stereo", tmp_path / "out"
    done = loftr_ros("run", source, "--stop", 12, "-o", out, "--weights", student, "-q")
    assert done.exit_code == 0, done.output
    assert "12 frames" in done.output and "against the truth: rotation 0." in done.output
    trajectory = np.loadtxt(out / "trajectory.tum")
    assert trajectory.shape == (12, 8)
    np.testing.assert_allclose(np.linalg.norm(trajectory[:, 4:], axis=1), 1, atol=1e-6)
    steps = np.diff(trajectory[:, 3])
    assert (steps > 0).all() and steps.std() < 0.2 * steps.mean(), "the car drives forward, along z, at one speed"
    assert "12 of 12 frames located" in done.output and "aligned with scale" in done.output
    rows = (out / "relative_poses.csv").read_text().splitlines()
    assert len(rows) >= 12 and rows[0].startswith("stamp_ns,keyframe_id")
    table = np.load(out / "correspondences.npz")
    assert len({len(table[name]) for name in table.files}) == 1
    assert len(table["track_id"]) > 1000 and table["inlier"].mean() > 0.5
    assert (out / "matches.png").stat().st_size > 10_000 and (out / "trajectory.png").stat().st_size > 10_000


def test_correspondences_can_be_parquet(shared_data: Path, tmp_path: Path, weights: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arguments = (
        "run",
        shared_data / "euroc_micro",
        "--stop",
        3,
        "-o",
        tmp_path,
        "--weights",
        weights,
        "--parquet",
        "-q",
    )
    done = loftr_ros(*arguments)
    assert done.exit_code == 0, done.output
    assert "track_id" in parquet.read_table(tmp_path / "correspondences.parquet").column_names


def test_parameters_come_from_the_same_file_as_the_node_s(shared_data: Path, tmp_path: Path, weights: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("/**:\n  ros__parameters:\n    weights: elsewhere\n    keyframe:\n      min_coverage: 7.0\n")
    done = loftr_ros("run", shared_data / "euroc_micro", "--params-file", params, "--weights", weights, "-q")
    assert done.exit_code == 2
    assert "keyframe.min_coverage is 7.0; expected 0.0 to 1.0" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nowhere"), "nowhere does not exist; expected a folder, a video, a bag"),
        (("run", ".", "--weights", "no.pt"), "no.pt does not exist"),
        (("run", ".", "--network", "loftr_16_4"), "comes without weights; set `weights` to a weights file"),
        (("run", ".", "--network", "superglue", "--weights", "WEIGHTS"), "'superglue' is not known"),
        (("run", ".", "--precision", "int4", "--weights", "WEIGHTS"), "'int4' is not known"),
        (("run", ".", "--params-file", "no.yaml", "--weights", "WEIGHTS"), "no.yaml does not exist"),
        (("play", "nowhere"), "nowhere does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_without_a_traceback(
    arguments: tuple[str, ...], words: str, weights: Path, tmp_path: Path
) -> None:
    given = [str(weights) if a == "WEIGHTS" else a for a in arguments]
    if arguments[1] == "nowhere" and arguments[0] == "run":
        given += ["--weights", str(weights)]
    done = loftr_ros(*given)
    assert done.exit_code == 2
    assert words in done.output
    assert isinstance(done.exception, SystemExit), "an error that nobody caught"
    assert len(done.output.strip().splitlines()) == 1


def test_an_empty_folder_is_refused_with_what_was_expected(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = loftr_ros("run", tmp_path / "empty", "--weights", weights)
    assert done.exit_code == 2
    assert "empty" in done.output


def test_the_back_end_s_settings_come_from_its_own_parameter_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("/loftr_back_end:\n  ros__parameters:\n    map_file: x\n    loops: {agreeing: 5, agreing: 4}\n")
    assert back_end_config(file).loops.agreeing == 5
    said = capsys.readouterr().err
    assert "loops.agreing" in said and "map_file" not in said
    file.write_text("/**:\n  ros__parameters:\n    loops: {agreeing: 0}\n")
    with pytest.raises(typer.Exit):
        back_end_config(file)
    assert "loops.agreeing" in capsys.readouterr().err
    repository = Path(__file__).resolve().parents[1]
    assert back_end_config(repository / "config" / "back_end.yaml") == back_end_config(None)
