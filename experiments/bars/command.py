"""``lipadvisor bars NAME``: measures what the dynamics and the forecast are held to."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import click

from lipadvisor.experiments.bars import BARS, BarSettings, bar
from lipadvisor.trajectory import write_json, write_text

__all__ = ["bars"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"Names: {', '.join(BARS)}.")
@click.argument("name", metavar="NAME|all", type=click.Choice([*BARS, "all"]))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/bars"),
    show_default=True,
    help="Folder.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--quick", is_flag=True, help="A small version: seconds, too small to judge by.")
def bars(name: str, out: Path, seed: int, quick: bool) -> None:
    """Measure a bar of the dynamics or the forecast: writes bar.json and table.txt.

    Finished sub-runs are kept: an interrupted measurement resumes with the same command.

    \b
    Examples:
      lipadvisor bars cost
      lipadvisor bars all --out runs/bars
    """  # noqa: D301
    for one in BARS if name == "all" else (name,):
        folder = out / one
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()

        def progress(line: str, one: str = one, begun: float = begun) -> None:
            click.echo(f"{one} {time.monotonic() - begun:5.0f} s  {line}")

        try:
            result = bar(one)(BarSettings(folder, seed, quick, progress))
        except KeyboardInterrupt:
            raise click.ClickException(f"stopped; the same command goes on from what is in {folder}.") from None
        write_json(folder / "bar.json", {"seed": seed, "quick": quick, **asdict(result)})
        write_text(folder / "table.txt", result.table + "\n")
        click.echo(result.table)
        for what, measured, demanded, met in result.checks:
            click.echo(f"  {'met   ' if met else 'MISSED'} {what}: {measured:.4g} ({demanded})")
