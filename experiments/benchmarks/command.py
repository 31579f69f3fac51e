"""``lipadvisor bench policies``: the bench from the command line."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["bench"]

SUITES = ("zero", "grid", "init", "constants", "horizon", "variants")


@click.group()
def bench() -> None:
    """Compare policies with tuned baselines on many tiny tasks."""


@bench.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True, help="Folder.")
@click.option("--suite", type=click.Choice(SUITES), default="zero", show_default=True, help="What is perturbed.")
@click.option(
    "--list",
    "which",
    type=click.Choice(("design", "confirmation", "both")),
    default="both",
    show_default=True,
    help="Tasks to run. The policy's constants are recorded before the confirmation list is touched.",
)
@click.option("--quick", is_flag=True, help="A subset of the tasks, 3 seeds, 32 trials: about 5 minutes.")
@click.option("--policy", default="lipschitz", show_default=True, help="Name of the policy under test.")
@click.option("--task", "only", multiple=True, help="Run this task alone; may be repeated.")
@click.option("--seeds", type=click.IntRange(1, 100), help="Repetitions of each arm; 5 by default.")
@click.option("--trials", type=click.IntRange(4, 1024), help="Trials of each baseline; 64 by default.")
@click.option("--every", type=click.IntRange(1, 1000), default=5, show_default=True, help="Steps between decisions.")
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True, help="CPU threads.")
def policies(
    out: Path,
    suite: str,
    which: str,
    quick: bool,
    policy: str,
    only: tuple[str, ...],
    seeds: int | None,
    trials: int | None,
    every: int,
    threads: int,
) -> None:
    """Run policies without tuning against the best of 64 tuned trials; write results, table and figure to --out.

    An interrupted bench goes on where it was: every record is kept in OUT/results.json under the hash of what made it.
    """
    from lipadvisor.experiments.benchmarks.report import run_lists

    try:
        text = run_lists(
            out,
            suite=suite,
            which=which,
            quick=quick,
            policy=policy,
            only=only,
            seeds=seeds,
            trials=trials,
            decide_every=every,
            threads=threads,
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(text)
