"""Nothing outside of an archive is read, written or deleted, whatever its table names or its folder links to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loftr_ros.places.archive import Archive
from loftr_ros.places.archive_files import IMAGES, FolderFiles, inside
from loftr_ros.places.keyframe import PlacesError


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "images/../../secret", "", "images/..\\secret", "images/a\0b"]
)
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("mine")
    files = FolderFiles(tmp_path / "archive")
    for act in (lambda: files.read(path), lambda: files.delete([path]), lambda: files.write(path, b"x")):
        with pytest.raises(PlacesError, match="which is outside of it"):
            act()
    with pytest.raises(PlacesError):
        inside(path)
    assert (tmp_path / "secret").read_text() == "mine"


def test_a_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "archive"
    outside.mkdir()
    (outside / "1-a.jpg").write_bytes(b"secret")
    (root / IMAGES).mkdir(parents=True)
    (root / IMAGES / "eve").symlink_to(outside)
    (root / IMAGES / "ada").mkdir()
    (root / IMAGES / "ada" / "2-b.jpg").symlink_to(outside / "1-a.jpg")
    files = FolderFiles(root)
    for act in (
        lambda: files.read(f"{IMAGES}/eve/1-a.jpg"),
        lambda: files.write(f"{IMAGES}/eve/3-c.jpg", b"x"),
        lambda: files.delete([f"{IMAGES}/eve/1-a.jpg"]),
        lambda: files.read(f"{IMAGES}/ada/2-b.jpg"),
    ):
        with pytest.raises(PlacesError):
            act()
    assert [file.name for file in outside.iterdir()] == ["1-a.jpg"]
    files.write(f"{IMAGES}/ada/4-d.jpg", b"good")
    assert files.read(f"{IMAGES}/ada/4-d.jpg") == b"good"
    files.delete([f"{IMAGES}/ada/4-d.jpg", f"{IMAGES}/ada/2-b.jpg"])
    assert (outside / "1-a.jpg").exists(), "a link is deleted, not what it leads to"


def test_a_pipe_and_what_is_larger_than_any_image_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / IMAGES / "ada"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "1-a.jpg")
    with (folder / "2-b.jpg").open("wb") as file:
        file.truncate(1 << 40)
    files = FolderFiles(tmp_path)
    for name in ("1-a.jpg", "2-b.jpg"):
        with pytest.raises(PlacesError):
            files.read(f"{IMAGES}/ada/{name}")
    with pytest.raises(FileNotFoundError):
        files.read(f"{IMAGES}/ada/3-c.jpg")


@pytest.mark.parametrize("linked", ["keyframes.lance", "turns.lance", "images", "keyframes.lance/data", "a file"])
def test_an_archive_with_a_link_in_it_is_refused_before_anything_is_written(tmp_path: Path, linked: str) -> None:
    pytest.importorskip("lancedb")
    root, outside = tmp_path / "archive", tmp_path / "outside"
    Archive.open(str(root), "made:1", 8).close()
    (root / "images").mkdir(exist_ok=True)
    within = next((root / "keyframes.lance").rglob("*.manifest")) if linked == "a file" else root / linked
    within.parent.mkdir(exist_ok=True)
    if within.exists():
        within.rename(outside)
    else:
        outside.mkdir()
    within.symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PlacesError, match="is a link out of the archive") as caught:
        Archive.open(str(root), "made:1", 8)
    assert caught.value.kind == "archive_foreign" and sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_is_reached_by_a_link_is_one_like_any_other(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    (tmp_path / "disk").mkdir()
    (tmp_path / "archive").symlink_to(tmp_path / "disk")
    Archive.open(str(tmp_path / "archive"), "made:1", 8).close()
    Archive.open(str(tmp_path / "archive"), "made:1", 8).close()
