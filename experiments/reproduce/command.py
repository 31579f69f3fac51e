"""``lipadvisor reproduce NAME``: reruns a published result and says whether the data agree."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path

import click

from lipadvisor.experiments.reproduce import REPRODUCTIONS, WITHOUT_DATA, Settings, Verdict, reproduction
from lipadvisor.trajectory import read_json, write_json

__all__ = ["reproduce"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"Names: {', '.join(REPRODUCTIONS)}.")
@click.argument("name", metavar="NAME|all", type=click.Choice([*REPRODUCTIONS, "all"]))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/reproduce"),
    show_default=True,
    help="Folder.",
)
@click.option("--data", default="digits", show_default=True, help="digits, cifar10:PATH or cifar100:PATH (a folder).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--quick", is_flag=True, help="A small version: seconds instead of minutes, too small to judge by.")
@click.option("--fresh", is_flag=True, help="Run again from the start, whatever is there already.")
def reproduce(name: str, out: Path, data: str, seed: int, quick: bool, fresh: bool) -> None:
    """Rerun a result of the two papers: writes data, a figure and a verdict computed from the data.

    An interrupted run resumes with the same command.

    \b
    Examples:
      lipadvisor reproduce batch-size
      lipadvisor reproduce all --out runs/papers
    """  # noqa: D301 -- the backslash is click's mark for a verbatim block
    names = list(REPRODUCTIONS) if name == "all" else [name]
    if data != "digits" and name in WITHOUT_DATA:
        raise click.UsageError(f"reproduce {name} makes its own inputs: --data does not apply, got {data!r}.")
    disagree = 0
    small = " (--quick: too small to judge by)" if quick else ""
    for index, one in enumerate(names, 1):
        prefix, given = f"[{index}/{len(names)}] ", "digits" if one in WITHOUT_DATA else data
        try:
            verdict = _run_one(one, out / one, given, seed, quick, fresh, prefix)
        except KeyboardInterrupt:
            raise click.ClickException(f"stopped; the same command goes on from what is in {out / one}.") from None
        disagree += not verdict.agrees
        click.echo(f"{one}: {'agrees' if verdict.agrees else 'DISAGREES'}{small}. {verdict.finding}")
        click.echo(f"  {out / one}")
    if disagree:
        click.echo(f"{disagree} of {len(names)} disagree with the published claim{small}; a finding, not an error.")


def _run_one(name: str, out: Path, data: str, seed: int, quick: bool, fresh: bool, prefix: str) -> Verdict:
    out.mkdir(parents=True, exist_ok=True)
    settings = {"data": data, "seed": seed, "quick": quick}
    done = out / "verdict.json"
    if done.exists() and not fresh:
        kept = read_json(done)
        if kept.get("settings") == settings:
            click.echo(f"{prefix}{name}: done before (--fresh runs it again)")
            return Verdict(**kept["verdict"])
    if fresh:  # without what earlier runs left for the next one to resume from
        done.unlink(missing_ok=True)
        shutil.rmtree(out / "runs", ignore_errors=True)
        (out / "landscape.npz").unlink(missing_ok=True)
    begun = time.monotonic()

    def progress(line: str) -> None:
        click.echo(f"{prefix}{name} {time.monotonic() - begun:5.0f} s  {line}")

    try:
        verdict = reproduction(name)(Settings(out, seed, quick, data, progress))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    write_json(done, {"settings": settings, "verdict": asdict(verdict)})
    return verdict
