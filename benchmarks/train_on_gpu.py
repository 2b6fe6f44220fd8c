"""Trains on a GPU that makes its pairs itself, in parts that fit a borrowed machine, and leaves what resuming needs.

Needs no installation: only the packages of the extra `train`, and a pack of assets, which is all that must be carried:

    loftr_ros train assets --pack assets.zip      # at home
    python3 benchmarks/train_on_gpu.py --assets assets.zip --results results --minutes 9
    python3 benchmarks/train_on_gpu.py --assets assets.zip --results results --minutes 9 --resume

First it compares one batch made there with the same made on the CPU, and measures how many pairs a second are made. In
the folder of the results it leaves 8 MB: device.json (these figures), train.log, best.safetensors and last.safetensors
in half precision, best.json, config.yaml, and resume.ckpt, from which `--resume` goes on, on any machine: from the
averaged weights, as training/small_checkpoint.py tells. `--whole` leaves last.ckpt too, from which it goes on exactly,
in parts of 15 MB (32 MB in all). `--total-minutes` is the budget of all parts, which the learning rate follows.
`--device cpu` tries the command where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from pathlib import Path

import torch

HOME = Path(__file__).resolve().parents[1]
if str(HOME) not in sys.path:
    sys.path.append(str(HOME))  # where the package is not installed

from loftr_ros.matcher.checkpoints.files import WeightsError, read_weights  # noqa: E402
from loftr_ros.matcher.precision import DeviceError, resolve_device  # noqa: E402
from loftr_ros.settings import ConfigError  # noqa: E402
from loftr_ros.training.asset_pack import unpacked  # noqa: E402
from loftr_ros.training.assets import AssetError  # noqa: E402
from loftr_ros.training.batched.raycast import draw  # noqa: E402
from loftr_ros.training.batched.recipes import Recipe, bank_pixels  # noqa: E402
from loftr_ros.training.callbacks import BEST, BEST_METRICS, CHECKPOINT, LAST  # noqa: E402
from loftr_ros.training.config import TrainingConfig  # noqa: E402
from loftr_ros.training.config_file import read_config  # noqa: E402
from loftr_ros.training.data import MadeBatches, open_data  # noqa: E402
from loftr_ros.training.module import TrainingError  # noqa: E402
from loftr_ros.training.small_checkpoint import grow, halved, shrink  # noqa: E402
from loftr_ros.training.trainer import train  # noqa: E402

RESUME = "resume.ckpt"
_PART = 15_000_000
_MEASURED_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="pack of `loftr_ros train assets --pack`")
    parser.add_argument("--results", type=Path, required=True, help="folder for what is left")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this part")
    parser.add_argument("--total-minutes", type=float, help="of all parts together; by default those of this part")
    parser.add_argument("--resume", action="store_true", help="go on from the results")
    parser.add_argument("--whole", action="store_true", help="leave all that an exact resumption needs, 40 MB")
    parser.add_argument("--config", type=Path, default=HOME / "config" / "training" / "compact_gpu.yaml")
    parser.add_argument("--initial", type=Path, help="weights to start from")
    parser.add_argument("--teacher", type=Path, help="XFeat's weights; without, no photographs are taught")
    parser.add_argument("--aliked", type=Path, help="ALIKED's weights, a second teacher")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting; repeatable")
    arguments = parser.parse_args()
    results: Path = arguments.results
    results.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(results / "train.log")]
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, handlers=handlers)
    try:
        config = settings(arguments)
        work = results / "work"
        if arguments.resume:
            join(results, work)
        else:
            shutil.rmtree(work, ignore_errors=True)
        data = open_data(config)
        assert isinstance(data.train, MadeBatches)
        about = measured(data.train, resolve_device(config.machine.accelerator))
        (results / "device.json").write_text(json.dumps(about, indent=2) + "\n")
        logging.info("%s", about)
        train(config, data, work, resume=arguments.resume, progress=False)
        collect(work, results, arguments.whole)
    except (AssetError, ConfigError, DeviceError, TrainingError, WeightsError) as error:
        sys.exit(f"train_on_gpu.py: {error}")


def settings(arguments: argparse.Namespace) -> TrainingConfig:
    import yaml

    replaced = {
        "data.assets": str(unpacked(arguments.assets)),
        "machine.accelerator": arguments.device,
        "budget.max_minutes": arguments.total_minutes or arguments.minutes,
        "budget.part_minutes": arguments.minutes,
        "photos.teacher": str(arguments.teacher or ""),
        "photos.aliked": str(arguments.aliked or ""),
    }
    if arguments.initial is not None:
        replaced["network.initial"] = str(arguments.initial)
    for text in arguments.set:
        name, _, value = text.partition("=")
        replaced[name] = yaml.safe_load(value)
    return read_config(arguments.config, replaced)


def measured(batches: MadeBatches, device: torch.device) -> dict[str, float | str]:
    """How a batch of the device differs from the CPU's, and pairs made a second."""
    started = time.perf_counter()
    recipes = [batches.recipes[number] for number in range(3)]
    planning = (time.perf_counter() - started) / sum(recipe.motions.shape[1] for recipe in recipes)
    drawn, expected = (
        draw(recipes[0].tables, bank_pixels(recipes[0].folder, where)) for where in (device, torch.device("cpu"))
    )
    same = drawn.surface.cpu() == expected.surface
    gray = (drawn.image.cpu() - expected.image).abs()
    about: dict[str, float | str] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "surfaces_as_on_cpu": float(same.float().mean()),
        "gray_difference_mean": float(gray.mean()),
        "inverse_depth_difference_most": float((drawn.inverse_depth.cpu() - expected.inverse_depth)[same].abs().max()),
        "planned_pairs_per_second_and_process": 1 / planning,
    }
    made, started = 0, time.perf_counter()
    while not made or time.perf_counter() - started < _MEASURED_SECONDS:
        made += timed(recipes[made % len(recipes)], device)
    seconds = time.perf_counter() - started
    size = "x".join(str(side) for side in recipes[0].tables.size)
    return about | {"made_pairs_per_second": made / seconds, "size_of_first": size}


def timed(recipe: Recipe, device: torch.device) -> int:
    """Make a batch, to the end; returns its number of pairs."""
    batch = recipe.make(device)
    float(batch.image0[0, 0, 0, 0])  # waits
    return len(batch)


def collect(work: Path, results: Path, whole: bool) -> None:
    """Keep what is needed at home: weights in half precision, and a small checkpoint or all of it in parts.

    Raises:
        TrainingError: a weight is too large for half precision.
    """
    from safetensors.torch import save

    for name in (BEST_METRICS, "config.yaml"):
        if (work / name).is_file():
            shutil.copy(work / name, results / name)
    for name in (BEST, LAST):
        if (work / name).is_file():
            weights = read_weights(work / name)
            # Not by save_file, whose files are unreadable to others, whatever the umask.
            (results / name).write_bytes(save(halved(weights.tensors), weights.metadata))
    for old in (*results.glob(f"{CHECKPOINT}.*"), results / RESUME):
        old.unlink(missing_ok=True)
    if whole:
        content = (work / CHECKPOINT).read_bytes()
        for part, start in enumerate(range(0, len(content), _PART)):
            (results / f"{CHECKPOINT}.{part}").write_bytes(content[start : start + _PART])
    else:
        shrink(work / CHECKPOINT, results / RESUME, read_weights(results / LAST).tensors)
    shutil.rmtree(work)


def join(results: Path, work: Path) -> None:
    """Make the checkpoint to resume from of what `collect` kept.

    Raises:
        TrainingError: it is not there.
    """
    work.mkdir(parents=True, exist_ok=True)
    parts = sorted(results.glob(f"{CHECKPOINT}.*"), key=lambda part: int(part.suffix[1:]))
    if parts:
        (work / CHECKPOINT).write_bytes(b"".join(part.read_bytes() for part in parts))
    elif (results / RESUME).is_file():
        grow(results / RESUME, work / CHECKPOINT, read_weights(results / LAST).tensors)
    else:
        raise TrainingError(f"{results} has neither {RESUME} nor {CHECKPOINT}.0 to resume from")
    for name in (BEST, BEST_METRICS):
        if (results / name).is_file():
            shutil.copy(results / name, work / name)


if __name__ == "__main__":
    main()
