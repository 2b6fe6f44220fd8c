"""Adapting to a recording: points followed through frames, and weights that are written only if they got better."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fakes import texture
from typer.testing import CliRunner

from loftr_ros.cli.main import app
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.matcher.checkpoints.files import fingerprint_of, read_weights, recognise_file
from loftr_ros.matcher.config import COMPACT, DEFAULT_PRESET
from loftr_ros.training.adaptation import ChainedSource, trained_parts
from loftr_ros.training.chains import ChainedPair, Chains, inverted, parted, sampled
from loftr_ros.weights import EMBEDDED
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

WIDTH, HEIGHT = 320, 240


def followed(images: list[np.ndarray], camera: CameraModel, numbers: range) -> list[ChainedPair]:
    chains = Chains(8, 3.5, 4)
    return [pair for n, image in zip(numbers, images, strict=True) for pair in chains.add(n, image, camera)]


@pytest.fixture(scope="module")
def walk() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], CameraModel]:
    """Images, depths, T_world_camera and the camera of a rendered walk, 14 frames."""
    camera, scene = default_camera(WIDTH, HEIGHT), Scene(3)
    poses = trajectory(120, seed=3)[50:78:2]
    seen = [scene.render(camera, pose) for pose in poses]
    return [each.image for each in seen], [each.depth for each in seen], list(poses), camera


@pytest.fixture(scope="module")
def pairs(walk: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], CameraModel]) -> list[ChainedPair]:
    images, _, _, camera = walk
    return followed(images, camera, range(len(images)))


def test_points_followed_over_many_frames_are_where_depth_and_pose_put_them(
    walk: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], CameraModel], pairs: list[ChainedPair]
) -> None:
    _, depths, poses, camera = walk
    assert len(pairs) >= 4 and max(p.frames[1] - p.frames[0] for p in pairs) >= 5
    errors = []
    for pair in pairs:
        first, last = pair.frames
        row, column = np.nonzero(np.isfinite(pair.targets[..., 0]))
        points = np.stack([column, row], axis=1) * pair.cell + pair.offset
        distance = depths[first][points[:, 1].round().astype(int), points[:, 0].round().astype(int)]
        rays = np.pad(camera.unproject(points), ((0, 0), (0, 1)), constant_values=1.0)
        T = np.linalg.inv(poses[last]) @ poses[first]
        seen = (rays * distance[:, None]) @ T[:3, :3].T + T[:3, 3]
        there = camera.project(seen)
        errors += list(np.linalg.norm(there - pair.targets[row, column], axis=1))
    assert np.median(errors) < 1.5 and np.nanpercentile(errors, 90) < 8


def test_a_sample_has_warps_that_are_each_others_inverse(pairs: list[ChainedPair]) -> None:
    sample = pairs[0].sample((WIDTH, HEIGHT))
    back = sampled(sample.warp10, np.nan_to_num(sample.warp01, nan=-1.0), 8.0)
    pixels = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1)
    error = np.linalg.norm(back - pixels, axis=-1)
    assert np.isfinite(error).mean() > 0.1
    assert np.nanpercentile(error, 95) < 1
    half = pairs[0].sample((WIDTH // 2, HEIGHT // 2))
    assert half.image0.shape == half.warp01.shape[:2] == (HEIGHT // 2, WIDTH // 2)
    both = np.isfinite(half.warp01) & np.isfinite(sample.warp01[::2, ::2])
    assert np.abs(half.warp01 - (sample.warp01[::2, ::2] + 0.5) / 2 + 0.5)[both].max() < 2


def test_the_errors_of_a_chain_are_removed_where_the_two_views_tell() -> None:
    wall = texture(HEIGHT + 40, WIDTH + 40, 3)
    image0, image1 = (wall[y : y + HEIGHT, x : x + WIDTH].copy() for x, y in ((20, 20), (6, 12)))
    cells = np.stack(np.meshgrid(np.arange(WIDTH // 8), np.arange(HEIGHT // 8)), axis=-1) * 8 + 3.5
    truth = (cells + np.array([14, 8])).astype(np.float32)
    truth[((truth < 0) | (truth > (WIDTH - 1, HEIGHT - 1))).any(axis=-1)] = np.nan
    drifted = ChainedPair(image0, image1, truth + np.float32(1.5), 8, 3.5, (0, 9))
    found = Chains(8, 3.5, 1)._registered(drifted).targets
    assert np.array_equal(np.isfinite(found), np.isfinite(truth))
    error = np.linalg.norm(found - truth, axis=-1)
    assert np.nanmedian(error) < 0.2 and np.nanmean(error > 1) < 0.2


def test_a_doubled_image_leaves_no_holes_in_the_inverse() -> None:
    pixels = np.stack(np.meshgrid(np.arange(40.0), np.arange(30.0)), axis=-1).astype(np.float32)
    back = inverted(2 * pixels - (20, 15))[2:-2, 2:-2]
    assert np.isfinite(back).all()
    np.testing.assert_allclose(back, (pixels[2:-2, 2:-2] + (20, 15)) / 2, atol=0.5)


def test_a_lost_frame_ends_all_chains_and_a_still_camera_gives_no_pair(
    walk: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], CameraModel],
) -> None:
    images, _, _, camera = walk
    chains = Chains(8, 3.5, 1)
    for n in (0, 1, 2, 4, 5):
        chains.add(n, images[n], camera)
    assert {chain.first.number for chain in chains._chains} == {4}
    noisy = [cv2.add(images[0], np.full_like(images[0], n)) for n in range(6)]
    assert followed(noisy, camera, range(6)) == []


def test_pairs_across_the_border_are_neither_trained_on_nor_held_out(pairs: list[ChainedPair]) -> None:
    some = [ChainedPair(*[None] * 3, 8, 3.5, frames) for frames in ((0, 10), (60, 74), (70, 80), (75, 99))]  # type: ignore[arg-type]
    trained, held_out = parted(some, 100, 0.25)
    assert [p.frames for p in trained] == [(0, 10), (60, 74)] and [p.frames for p in held_out] == [(75, 99)]


def test_only_what_follows_the_features_is_trained_so_that_archives_stay_valid() -> None:
    file = read_weights(EMBEDDED[DEFAULT_PRESET])
    config = recognise_file(file).config
    before = fingerprint_of(config, file.tensors)
    changed = {
        name: value + 0.1 if name.startswith(tuple(trained_parts(COMPACT))) and value.is_floating_point() else value
        for name, value in file.tensors.items()
    }
    assert sum(not torch.equal(changed[name], file.tensors[name]) for name in changed) >= 15
    assert fingerprint_of(config, changed) == before
    changed["transformer.layers.0.q_proj.weight"] = changed["transformer.layers.0.q_proj.weight"] + 0.1
    assert fingerprint_of(config, changed) != before


def test_samples_of_a_recording_depend_on_their_random_numbers_alone(pairs: list[ChainedPair]) -> None:
    source = ChainedSource(pairs)
    one, two = (source.sample(np.random.default_rng(5), (WIDTH, HEIGHT), 1.0) for _ in range(2))
    np.testing.assert_array_equal(one.image0, two.image0)
    np.testing.assert_array_equal(one.warp10, two.warp10)


def test_a_recording_without_calibration_or_with_too_little_motion_is_refused_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in range(3):
        cv2.imwrite(str(tmp_path / f"{n:03d}.png"), rng.integers(0, 255, (240, 320), np.uint8))
    said = CliRunner().invoke(app, ["adapt", str(tmp_path), "-o", str(tmp_path / "out.safetensors"), "-q"])
    assert said.exit_code == 2 and "--camera" in said.output
    said = CliRunner().invoke(app, ["adapt", "rendered:room?frames=3", "-o", str(tmp_path / "out.safetensors"), "-q"])
    assert said.exit_code == 2 and "record more" in said.output
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.long
def test_a_rendered_recording_adapts_or_nothing_is_written(tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    said = CliRunner().invoke(app, ["adapt", "rendered:room?frames=150", "-o", str(target), "--minutes", "3", "-q"])
    assert said.exit_code == (0 if target.exists() else 1), said.output
    assert ("written to" in said.output) == target.exists()
