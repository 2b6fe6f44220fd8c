"""The demo's publisher process: plays a source and prints a report as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys

from loftr_ros.recordings import SourceError, open_source
from loftr_ros.tools.player.player import PlayError, play


def main() -> int:
    """Play the recording of the first argument.

    It is JSON of {"uri": ..., "source": options of `open_source`, "play": options of `play`}.
    """
    asked = json.loads(sys.argv[1])
    try:
        with open_source(asked["uri"], **asked["source"]) as source:
            report = play(source, progress=False, **asked["play"])
    except (PlayError, SourceError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(dataclasses.asdict(report)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
