"""Gives every reader broken files and messages, and counts how they end.

Each case must give a result or an error of the reader's own kind within ten seconds: no other exception, no hang.
Failures are printed with the case, and make the exit code 1.

    .venv/bin/python benchmarks/fuzz.py --cases 100000
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "test"))

from fuzzing import READERS, Case, run_case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="in all, over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose names begin with this")
    arguments = parser.parse_args()
    readers = {name: reader for name, reader in READERS.items() if name.startswith(arguments.only)}
    weights = sum(reader.share for reader in readers.values())
    failed = 0
    print(f"{'reader':28} {'cases':>7} {'read':>7} {'refused':>7} {'wrong':>6} {'slowest':>8}")
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, reader in readers.items():
            counts: Counter[str] = Counter()
            slowest = 0.0
            count = round(arguments.cases * reader.share / weights)
            for number in range(count):
                case = Case(reader, arguments.seed * 1_000_003 + number, Path(folder))
                start = time.perf_counter()
                try:
                    outcome = run_case(case)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    outcome = "wrong"
                    failed += 1
                    if failed <= 20:
                        text = io.StringIO()
                        traceback.print_exception(error, file=text)
                        print(f"--- {name} {case.seed}: {case.described}\n{text.getvalue()[-1500:]}", flush=True)
                seconds = time.perf_counter() - start
                if seconds > 10:  # perhaps the machine was busy with something else
                    start = time.perf_counter()
                    with suppress(Exception):
                        run_case(case)
                    seconds = min(seconds, time.perf_counter() - start)
                slowest = max(slowest, seconds)
                if seconds > 10:
                    outcome = "wrong"
                    failed += 1
                    print(f"--- {name} {case.seed}: took {seconds:.1f} s", flush=True)
                counts[outcome] += 1
            total += counts
            row = [counts[key] for key in ("read", "refused", "wrong")]
            print(f"{name:28} {count:7} {row[0]:7} {row[1]:7} {row[2]:6} {slowest:7.2f}s", flush=True)
    row = [total[key] for key in ("read", "refused", "wrong")]
    print(f"{'all':28} {sum(row):7} {row[0]:7} {row[1]:7} {row[2]:6}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
