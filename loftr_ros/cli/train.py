"""`loftr_ros train`: trains a network, and gets the photos for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from loftr_ros.cli.errors import INTERRUPTED, fail
from loftr_ros.extras import how_to_install

Assets = Annotated[
    Path | None, typer.Option("--assets", help="Folder of the assets.", show_default="in the user's cache")
]

app = typer.Typer(help="Train a network, and get its training data.", invoke_without_command=True)


@app.callback()
def train(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="Settings (YAML): config/training/*.yaml.", show_default="OUTPUT's, with --resume"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for checkpoints and weights.", show_default="runs/NAME of the config"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint, if there is one.")
    ] = False,
    max_minutes: Annotated[
        float | None, typer.Option(help="Maximum minutes, of all resumed parts together.", show_default="the config's")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Maximum number of steps.", show_default="the config's")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights, data and everything else.", show_default="the config's")
    ] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as optimizer.learning_rate=0.0005."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Lines instead of a progress bar.")] = False,
) -> None:
    """Train a network; the weights are written to OUTPUT/best.safetensors."""
    if context.invoked_subcommand is not None:
        return
    if config is None and output is not None and resume:
        config = output / "config.yaml"
    if config is None:
        fail("--config is missing: name a file such as config/training/smoke.yaml")
    replaced = _settings(replace or [])
    for name, value in (("budget.max_minutes", max_minutes), ("budget.max_steps", max_steps), ("seed", seed)):
        if value is not None:
            replaced[name] = value
    try:
        from loftr_ros.training.trainer import train as run
    except ImportError as error:
        fail(f"{error}: training needs more than matching does: {how_to_install('train')}")
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.training.assets import AssetError
    from loftr_ros.training.config_file import read_config
    from loftr_ros.training.data import open_data
    from loftr_ros.training.module import InterruptedTrainingError, TrainingError
    from loftr_ros.training.recorded import RecordedError

    _show_lines()
    try:
        settings = read_config(config, replaced)
        output = output or Path("runs") / (config.parent.name if config.stem == "config" else config.stem)
        run(settings, open_data(settings), output, resume=resume, progress=not quiet)
    except InterruptedTrainingError as error:
        typer.echo(f"loftr_ros: {error}", err=True)
        raise typer.Exit(INTERRUPTED) from error
    except (AssetError, DeviceError, RecordedError, TrainingError, ValueError, WeightsError) as error:
        fail(error)
    typer.echo(f"written to {output}")


@app.command()
def assets(
    photos: Annotated[
        Path | None,
        typer.Option(help="Folder of photos.", show_default="Debian packages of photos and textures"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the assets.", show_default="in the user's cache")
    ] = None,
    downloads: Annotated[
        Path | None,
        typer.Option(help="Folder for downloaded packages; earlier downloads in it are used.", show_default="none"),
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(
            help="File for the assets of the folder, smaller than 48 MB: data.assets of a training on another machine.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Get photos and textures for training pairs; with --pack, write what is there into one file."""
    from loftr_ros.training.asset_pack import write_pack
    from loftr_ros.training.asset_packages import fetch_assets
    from loftr_ros.training.assets import AssetError, collect_folder, default_folder

    _show_lines()
    folder = output or default_folder()
    try:
        if pack is not None:
            images, quality = write_pack(folder, pack)
            typer.echo(f"{images} images of {folder} are in {pack}: {pack.stat().st_size / 1e6:.1f} MB, JPEG {quality}")
            return
        origins = fetch_assets(folder, downloads=downloads) if photos is None else collect_folder(photos, folder)
    except AssetError as error:
        fail(error)
    images = sum(origin.images for origin in origins)
    typer.echo(f"{images} images, {sum(origin.held_out for origin in origins)} of them held out, are in {folder}")


@app.command()
def calibrate(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Weights of `compact`.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    pairs: Annotated[int, typer.Option(help="Number of held-out photos, under moderate homographies.", min=1)] = 100,
    folder: Assets = None,
) -> None:
    """Scale the predicted standard deviations, so that 68 % of the errors along an axis are within them."""
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.training.assets import AssetError
    from loftr_ros.training.calibration import calibrated_weights
    from loftr_ros.training.config_file import config_of
    from loftr_ros.training.data import open_data

    content: dict[str, Any] = {
        "budget": {"max_steps": 1},
        "data": {"batch_size": 1, "sizes": [[640, 480]], "held_out_difficulty": 0.4},
        "made": {"homography": 1.0, "room": 0, "clutter": 0, "street": 0, "relief": 0},
        "validation": {"batches": pairs},
    }
    if folder is not None:
        content["data"]["assets"] = str(folder)
    try:
        held_out = open_data(config_of(content)).held_out
        before, after = calibrated_weights(source, target, (held_out[number] for number in range(pairs)))
    except (AssetError, WeightsError) as error:
        fail(error)
    typer.echo(
        f"of {after.count} matches {100 * before.within_one:.1f} % of the errors were within one standard deviation; "
        f"times {before.scale:.3f} it is {100 * after.within_one:.1f} %, and {100 * after.within_two:.1f} % within two"
    )


@app.command()
def int8(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Weights of `compact`.", show_default=False)],
    photos: Annotated[int, typer.Option(help="Number of held-out photos, at most.", min=1)] = 48,
    folder: Assets = None,
) -> None:
    """Measure what `precision: int8` needs of weights, on held-out photos; written beside them."""
    from loftr_ros.matcher.checkpoints.files import WeightsError
    from loftr_ros.training.assets import AssetBank, AssetError, default_folder
    from loftr_ros.training.int8_ranges import int8_ranges, photographs

    try:
        images = photographs(AssetBank(folder or default_folder(), validation=True), photos)
        path = int8_ranges(weights, images).write(weights)
    except (AssetError, OSError, WeightsError) as error:
        fail(error)
    typer.echo(f"written to {path}, from {len(images)} photos")


@app.command()
def places(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of the network whose features are pooled.", show_default="the package's"),
    ] = None,
    count: Annotated[
        int, typer.Option("--places", help="Number of rendered places, of three views each.", min=1)
    ] = 1500,
    seed: Annotated[int, typer.Option(help="Seed of the places.")] = 88_000_000,
    worlds: Annotated[
        int, typer.Option(help="Number of walks through buildings that return to their places.", min=0)
    ] = 2,
    dimension: Annotated[int, typer.Option(help="Dimension of the descriptor.", min=8, max=512)] = 256,
    folder: Assets = None,
) -> None:
    """Learn the pooling of the place descriptor from views of rendered places."""
    from itertools import chain

    import numpy as np

    from loftr_ros.matcher.checkpoints.recognition import WeightsError
    from loftr_ros.matcher.config import AUTO
    from loftr_ros.matcher.factory import MatcherSpec, open_matcher
    from loftr_ros.matcher.precision import DeviceError
    from loftr_ros.training.assets import AssetBank, AssetError, default_folder
    from loftr_ros.training.place_views import place_views, revisited_places
    from loftr_ros.training.place_whitening import WhiteningConfig, learn_pooling, write_pooling
    from loftr_ros.weights import find_weights
    from loftr_ros.worlds.revisits import FITTING

    _show_lines()
    try:
        bank = AssetBank(folder or default_folder())
        matcher = open_matcher(MatcherSpec(AUTO, weights or find_weights(AUTO)))
        views = (place_views(bank, np.random.default_rng([seed, number]), 3) for number in range(count))
        again = chain.from_iterable(revisited_places(number) for number in FITTING[:worlds])
        config = WhiteningConfig(dimension=dimension, first_places=min(WhiteningConfig().first_places, count))
        pooling = learn_pooling(matcher, chain(views, again), config)
        source = f"{count} rendered places of three views (seed {seed}), {worlds} revisit worlds from {FITTING[0]} on"
        write_pooling(target, pooling, matcher.fingerprint, source)
    except (AssetError, DeviceError, ValueError, WeightsError) as error:
        fail(error)
    typer.echo(f"the pooling of {matcher.config.name} ({matcher.fingerprint}) is in {target}")


def _settings(given: list[str]) -> dict[str, Any]:
    """Parse NAME=VALUE, with the value as YAML."""
    import yaml

    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            fail(f"--set {text}: expected NAME=VALUE")
        values[name] = yaml.safe_load(value) if value else ""  # YAML would turn an empty text into null
    return values


def _show_lines() -> None:
    """Print the training's log to stderr."""
    import logging

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("loftr_ros").setLevel(logging.INFO)
