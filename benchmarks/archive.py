"""Cost of the archive of keyframes: time of a query and of adding, memory, disk, and the index's recall.

Descriptors are synthetic: places whose descriptors have a decaying spectrum, ten views of each. The rows of a filled
archive have no images, since these are in separate files that a search does not touch. Keyframes added for the timing
have 40 kB images and the depths of 4,800 cells, with every write flushed to the disk. Each size is filled in one
process and measured in another.

    .venv/bin/python benchmarks/archive.py [--sizes 1000 10000 100000] [--folder /somewhere/with/room]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
from measuring import Report, machine

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.odometry import ChainLink
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.places.archive import Archive
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName, RecentPast

DIMENSION = 256
VIEWS = 10
QUERIES = 200
ADDED = 200
TOP = 5
# Older versions of the table are kept for 10 s.
KEPT_S = 11.0


def made_descriptors(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, D) float32 descriptors of length one, and (QUERIES, D) further views of the same places."""
    rng = np.random.default_rng(0)
    spectrum = 1 / np.sqrt(1 + np.arange(DIMENSION) / 16)
    places = rng.normal(size=(max(count // VIEWS, 1), DIMENSION)) * spectrum

    def views(of: np.ndarray) -> np.ndarray:
        seen = places[of] + 0.7 * rng.normal(size=(len(of), DIMENSION)) * spectrum
        return (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float32)

    return views(np.arange(count) // VIEWS % len(places)), views(rng.integers(0, len(places), QUERIES))


def made_keyframe(number: int, descriptor: np.ndarray, rng: np.random.Generator | None) -> ArchivedKeyframe:
    """A keyframe; with image and depth if it has a generator for them."""
    camera = CameraModel(640, 480, np.array([[525.0, 0, 320], [0, 525.0, 240], [0, 0, 1]]))
    depth = None
    # No two poses are equal: the database would compress equal ones.
    chain = np.random.default_rng(number)
    if rng is not None:
        depth = CellDepth(rng.uniform(0.1, 2.0, 4800), np.full(4800, 1e-4), True)
    return ArchivedKeyframe(
        name=KeyframeName("rover", number),
        session=1,
        segment=0,
        stamp_ns=number * 10**9,
        frame_id="camera_optical",
        size=(640, 480),
        image=b"" if rng is None else rng.bytes(40_000),
        camera=camera,
        descriptor=descriptor,
        pose=chain.normal(size=(4, 4)),
        link=ChainLink(number - 1, chain.normal(size=(4, 4)), chain.normal(size=(6, 6)), True) if number > 1 else None,
        depth=depth,
        grid=(60, 80),
    )


def resident_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def timed_queries(archive: Archive, queries: np.ndarray) -> tuple[list[float], list[set[int]]]:
    """Milliseconds and result of each query."""
    spent, found = [], []
    past = RecentPast("rover", 1, 10**18)
    for query in queries:
        start = time.perf_counter()
        best = archive.search(query, TOP, past)
        spent.append(1e3 * (time.perf_counter() - start))
        found.append({candidate.name.id for candidate in best})
    return spent, found


def fill(count: int, uri: str) -> None:
    """An archive of `count` keyframes, without images."""
    descriptors, _ = made_descriptors(count)
    with Archive.open(uri, "made", DIMENSION, max_size_mb=1e5) as archive:
        for start in range(0, count, 2000):
            numbers = range(start, min(start + 2000, count))
            archive.add_all([made_keyframe(number + 1, descriptors[number], None) for number in numbers])
        archive.tidy()
        time.sleep(KEPT_S)
        archive.tidy()


def measure(count: int, uri: str) -> dict[str, float]:
    """Queries of an archive that `fill` has made, and adding to it."""
    descriptors, queries = made_descriptors(count)
    rng = np.random.default_rng(1)
    before = resident_mb()
    import lancedb  # noqa: F401  (what it takes by itself)

    imported = resident_mb()
    with Archive.open(uri, "made", DIMENSION, max_size_mb=1e5) as archive:
        opened = resident_mb()
        disk = archive.size_bytes
        timed_queries(archive, queries[:5])
        spent, found = timed_queries(archive, queries)
        truth = np.argsort(-(queries @ descriptors.T), axis=1)[:, :TOP] + 1
        recall = np.mean([len(ids & set(best.tolist())) / TOP for ids, best in zip(found, truth, strict=True)])
        searched = resident_mb()
        adding, meanwhile = [], []
        for number in range(ADDED):
            keyframe = made_keyframe(count + number + 1, descriptors[number % count], rng)
            start = time.perf_counter()
            archive.add(keyframe)
            adding.append(1e3 * (time.perf_counter() - start))
            if number % 4 == 3:
                meanwhile += timed_queries(archive, queries[number : number + 1])[0]
        start = time.perf_counter()
        archive.tidy()
        tidied = time.perf_counter() - start
        return {
            "count": count,
            "query p50": np.percentile(spent, 50),
            "query p95": np.percentile(spent, 95),
            "written p95": np.percentile(meanwhile, 95),
            "recall": float(recall),
            "add p50": np.percentile(adding, 50),
            "add p99": np.percentile(adding, 99),
            "add worst": max(adding),
            "tidy": tidied,
            "import": imported - before,
            "open": opened - imported,
            "search": searched - imported,
            "written": resident_mb() - imported,
            "row": disk / count,
        }


def plot(rows: list[dict[str, float]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), constrained_layout=True)
    counts = [row["count"] for row in rows]
    for key, label in (
        ("query p50", "query, p50"),
        ("query p95", "query, p95"),
        ("written p95", "query while written, p95"),
        ("add p50", "add, p50"),
        ("add p99", "add, p99"),
    ):
        left.loglog(counts, [row[key] for row in rows], "o-", label=label)
    left.set(xlabel="keyframes", ylabel="ms")
    right.semilogx(counts, [row["search"] for row in rows], "o-", label="after queries")
    right.semilogx(counts, [row["written"] for row in rows], "o-", label="after queries and adding")
    right.set(xlabel="keyframes", ylabel="MB beyond the import", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    left.set_yticks(ticks := [5, 10, 20, 50, 100], [str(tick) for tick in ticks])
    left.minorticks_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000], help="keyframes")
    parser.add_argument("--folder", type=Path, help="for the archives, a few hundred MB; without, the system's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of table and plot")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=["fill", "measure"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(globals()[arguments.step](arguments.one, str(arguments.folder / "archive"))))
        return
    report = Report()
    report(machine())
    report(f"{DIMENSION} numbers a descriptor; {QUERIES} queries for the top {TOP}; {ADDED} keyframes of 40 kB added")
    report()
    names = ["keyframes", "query p50", "p95", "p95 while written", f"recall at {TOP}", "add p50", "p99", "worst"]
    report("| " + " | ".join([*names, "tidy s", "MB import", "open", "queries", "adding", "bytes a row"]) + " |")
    report("|" + " --- |" * 14)
    rows = []
    for count in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            command = [sys.executable, __file__, "--one", str(count), "--folder", folder, "--step"]
            subprocess.run([*command, "fill"], check=True, stdout=subprocess.DEVNULL)
            row = json.loads(
                subprocess.run([*command, "measure"], check=True, stdout=subprocess.PIPE, text=True).stdout
            )
        rows.append(row)
        values = [f"{count:,}", *(f"{row[key]:.1f}" for key in ("query p50", "query p95", "written p95"))]
        values += [f"{row['recall']:.4f}", *(f"{row[key]:.0f}" for key in ("add p50", "add p99", "add worst"))]
        values += [f"{row['tidy']:.1f}", *(f"{row[key]:.0f}" for key in ("import", "open", "search", "written", "row"))]
        report(f"| {' | '.join(values)} |")
    report()
    report("times in ms where not said, memory in MB: what the import takes, and what is taken beyond it then")
    (arguments.out / "archive.txt").write_text("\n".join(report.lines) + "\n")
    plot(rows, arguments.out / "archive.png")


if __name__ == "__main__":
    main()
