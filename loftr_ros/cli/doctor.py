"""`loftr_ros doctor`: tries out what the node would use on this machine."""

from __future__ import annotations

import typer

from loftr_ros.cli.errors import PARTIAL
from loftr_ros.cli.options import Device, Network, NodeName, ParamsFile, Precision, Weights, named, parameters


def doctor(
    network: Network = "",
    weights: Weights = "",
    device: Device = "",
    precision: Precision = "",
    params_file: ParamsFile = None,
    node: NodeName = "",
) -> None:
    """Try out what the node would use on this machine, and print a verdict per line."""
    from loftr_ros.tools.doctor import FAILS, NOTE, examine, lines

    values = parameters(params_file, node) | named(network=network, weights=weights)
    findings = list(examine(values, device, precision))
    typer.echo("\n".join(lines(findings)))
    failed = [each.name for each in findings if each.verdict == FAILS]
    noted = sum(each.verdict == NOTE for each in findings)
    if failed:
        typer.echo(f"{len(failed)} of {len(findings)} fail: {', '.join(failed)}")
        raise typer.Exit(PARTIAL)
    typer.echo(f"everything works; {noted} notes")
