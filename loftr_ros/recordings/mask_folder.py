"""Masks of moving things in a folder beside a recording."""

from __future__ import annotations

from pathlib import Path

from loftr_ros.recordings.companions import ImageFile
from loftr_ros.recordings.files import FORMATS
from loftr_ros.recordings.images import SourceError


class MaskFolder:
    """Finds the mask of a frame: by the name of its image without the ending, or by its number."""

    def __init__(self, folder: str | Path) -> None:
        """List the folder.

        Raises:
            SourceError: it has no images.
        """
        self._folder = Path(folder).expanduser()
        files = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        self._by_name = {file.stem: file for file in files if file.suffix.lower() in FORMATS}
        if not self._by_name:
            raise SourceError(
                f"{self._folder} holds no masks; expected a folder of images ({', '.join(FORMATS)}), one for each frame"
            )
        self._by_number = {int(name): file for name, file in self._by_name.items() if name.isdecimal()}

    def find(self, index: int, image: Path | None = None) -> ImageFile | None:
        """The mask of a frame; None if it has none.

        Args:
            index: number of the frame.
            image: its file, in a folder of images: then the names count, not the number.
        """
        if image is None:
            file = self._by_number.get(index)
        else:
            file = self._by_name.get(image.stem) or self._by_name.get(image.name.partition(".")[0])
        return None if file is None else ImageFile(file, FORMATS[file.suffix.lower()])

    def note(self, found: int, total: int, what: str) -> str:
        """A remark if frames lack their masks; empty if none do.

        Raises:
            SourceError: all do.
        """
        if not found:
            raise SourceError(f"no mask in {self._folder} belongs to an image: expected names of masks like {what}")
        return "" if found == total else f"{total - found} of {total} images have no mask in {self._folder}"
