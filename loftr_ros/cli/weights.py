"""`loftr_ros weights`: lists, downloads, checks and converts weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loftr_ros.cli.errors import fail

_OURS = "rendered scenes, photos by homographies"

app = typer.Typer(help="Published weights: list, get, check, convert.", no_args_is_help=True)


@app.command("list")
def list_weights() -> None:
    """List the weights in the package and the published ones, and show which are on this machine."""
    from loftr_ros.weights import EMBEDDED
    from loftr_ros.weights.catalogue import CATALOGUE, cache_folder

    rows = [("NAME", "NETWORK", "SIZE", "HERE", "TRAINED ON", "FROM")]
    rows += [
        (network, network, f"{path.stat().st_size / 1e6:.1f} MB", "yes", _OURS, "this package")
        for network, path in EMBEDDED.items()
    ]
    rows += [
        (
            entry.name,
            entry.network,
            f"{entry.size / 1e6:.1f} MB" if entry.size else "",
            "yes" if entry.cached() else "",
            entry.trained_on,
            entry.page if entry.urls else f"{entry.page} (by hand)",
        )
        for entry in CATALOGUE
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    typer.echo(f"\nPublished weights are kept in {cache_folder()}; download them with: weights get NAME")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A name of `loftr_ros weights list`.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File or folder to write to.", show_default="the cache"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Download published weights and verify them; an interrupted download is continued."""
    from loftr_ros.weights import WeightsError
    from loftr_ros.weights.catalogue import CATALOGUE, find_entry
    from loftr_ros.weights.download import get_weights

    entry = find_entry(name)
    if entry is None:
        fail(f"there are no published weights '{name}'; expected one of {', '.join(entry.name for entry in CATALOGUE)}")
    try:
        typer.echo(get_weights(entry, output, progress=not quiet))
    except WeightsError as error:
        fail(error)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A weights file in any layout.", show_default=False)]) -> None:
    """Show the content of a weights file, and check it."""
    import torch

    from loftr_ros.matcher.checkpoints.files import check_weights, read_weights, recognise_file, sha256_of
    from loftr_ros.weights import WeightsError
    from loftr_ros.weights.catalogue import CATALOGUE

    try:
        held = read_weights(file)
        digest = sha256_of(file)
        published = [entry.name for entry in CATALOGUE if entry.sha256 == digest]
        typer.echo(f"file        {file} ({file.stat().st_size / 1e6:.1f} MB)")
        typer.echo(f"sha256      {digest}{f' (published as {published[0]})' if published else ''}")
        typer.echo(f"layout      {held.layout}")
        recognition = recognise_file(held)
        used = check_weights(recognition.config, held)
    except WeightsError as error:
        fail(error)
    floating = {name: value for name, value in used.items() if value.is_floating_point()}
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in floating.values()} or {str(torch.float32)})
    statistics = (".running_mean", ".running_var")
    parameters = sum(value.numel() for name, value in floating.items() if not name.endswith(statistics))
    typer.echo(f"network     {recognition.config.name} (recognised by its {recognition.by})")
    typer.echo(f"parameters  {parameters:,}, {' and '.join(kinds)}, all finite")
    unused = sorted({name.split(".")[0] + "." + name.split(".")[1] for name in set(held.tensors) - set(used)})
    if unused:
        typer.echo(f"not used    {', '.join(unused)}")
    if held.metadata.get("source"):
        typer.echo(f"source      {held.metadata['source']}")
    if recognition.doubt:
        typer.echo(f"not known   {recognition.doubt}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A weights file in any layout.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write (safetensors).", show_default=False)],
    network: Annotated[
        str, typer.Option(help="Preset of the weights, if the file does not name it.", show_default="recognised")
    ] = "auto",
) -> None:
    """Rewrite weights in the project's own format: safetensors, the weights alone, with the network's name."""
    from loftr_ros.matcher.checkpoints.files import (
        check_weights,
        preset,
        read_weights,
        recognise_file,
        save_network_weights,
    )
    from loftr_ros.matcher.config import AUTO
    from loftr_ros.weights import WeightsError

    if target.suffix != ".safetensors":
        fail(f"{target}: the file's format is safetensors, so its name must say so; call it {target.stem}.safetensors")
    try:
        held = read_weights(source)
        if network == AUTO:
            recognition = recognise_file(held)
            config = recognition.config
            if recognition.doubt:
                typer.echo(f"loftr_ros: {source} does not determine {recognition.doubt} by --network", err=True)
        else:
            config = preset(network)
        used = check_weights(config, held)
        save_network_weights(target, used, config, held.metadata.get("source") or source.name)
    except WeightsError as error:
        fail(error)
    typer.echo(f"{target}: network {config.name}, {target.stat().st_size / 1e6:.1f} MB")
