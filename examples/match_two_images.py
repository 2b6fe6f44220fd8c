#!/usr/bin/env python3
"""Match two images and draw the matches.

python3 match_two_images.py a.png b.png -o matches.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import cv2
import numpy as np

import loftr_ros


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, match, and write the picture."""
    parser = argparse.ArgumentParser(description="Match two images and draw the matches.")
    parser.add_argument("image0")
    parser.add_argument("image1")
    parser.add_argument("-o", "--output", default="matches.png", help="picture to write (default: matches.png)")
    parser.add_argument("--min-confidence", type=float, default=0.5, help="draw matches from here on (default: 0.5)")
    given = parser.parse_args(arguments)
    try:
        found = loftr_ros.match(given.image0, given.image1)
    except (loftr_ros.SourceError, loftr_ros.FrameRefusedError) as error:
        print(f"match_two_images: {error}", file=sys.stderr)
        return 2
    shown = found.confidence >= given.min_confidence
    error = f", median standard deviation {np.nanmedian(found.std):.2f} px" if len(found) else ""
    print(
        f"{len(found)} matches, {int(shown.sum())} of them with a confidence of {given.min_confidence} or more{error}"
    )
    picture = draw(given.image0, given.image1, found.points0[shown], found.points1[shown])
    if not cv2.imwrite(given.output, picture):
        print(f"match_two_images: {given.output} cannot be written", file=sys.stderr)
        return 2
    print(f"written to {given.output}")
    return 0


def draw(file0: str, file1: str, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """Both images side by side, with a line for each match."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # pixels as they are in the file, as matching takes them
    image0, image1 = (cv2.imread(file, flags) for file in (file0, file1))
    picture = np.zeros((max(len(image0), len(image1)), image0.shape[1] + image1.shape[1], 3), np.uint8)
    picture[: len(image0), : image0.shape[1]] = image0
    picture[: len(image1), image0.shape[1] :] = image1
    beside = points1 + np.array([image0.shape[1], 0])
    for number, (start, end) in enumerate(zip(points0, beside, strict=True)):
        hue = np.array([[[number * 37 % 180, 200, 255]]], np.uint8)
        color = tuple(int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0])
        cv2.line(picture, tuple(start.round().astype(int)), tuple(end.round().astype(int)), color, 1, cv2.LINE_AA)
    return picture


if __name__ == "__main__":
    sys.exit(main())
