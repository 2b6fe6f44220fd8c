"""Nothing is read, written or deleted outside of an archive, whatever its table names or its folder links to."""

from __future__ import annotations

from pathlib import Path

import pytest

from loftr_ros.places.archive_files import IMAGES, FolderFiles, inside
from loftr_ros.places.keyframe import PlacesError


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "images/../../secret", "", "images/..\\secret", "images/a\0b"]
)
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("mine")
    files = FolderFiles(tmp_path / "archive")
    for act in (lambda: files.read(path), lambda: files.delete([path]), lambda: files.write(path, b"x")):
        with pytest.raises(PlacesError, match="which is not in it"):
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
