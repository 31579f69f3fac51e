"""``lipadvisor bench policies``: the bench from the command line."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["bench"]

_USUAL_ARMS = ("rules", "blind", "foreign", "rehearsal", "revalidated", "stopped")
ARMS = (*_USUAL_ARMS, "searched")
LISTS = ("design", "confirmation", "both")
SUITES = ("zero", "baselines", "grid", "init", "constants", "horizon", "variants", "interval", "shocks")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Compare policies with tuned baselines on many tiny tasks."""


@bench.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/bench"),
    show_default=True,
    help="Folder.",
)
@click.option(
    "--suite", type=click.Choice(SUITES), default="zero", show_default=True, help="What is perturbed; see above."
)
@click.option(
    "--list",
    "which",
    type=click.Choice(LISTS),
    default="both",
    show_default=True,
    help="Tasks to run. The policy's constants are recorded before the confirmation list is touched.",
)
@click.option("--quick", is_flag=True, help="A subset of the design list, 3 seeds, 32 trials: about 5 minutes.")
@click.option("--policy", default="lipschitz", show_default=True, help="Name of the policy under test.")
@click.option("--task", "only", multiple=True, help="Run this task alone; may be repeated.")
@click.option("--seeds", type=click.IntRange(1, 100), help="Repetitions of each arm; 5 by default.")
@click.option("--trials", type=click.IntRange(4, 1024), help="Trials of each baseline; 64 by default.")
@click.option("--every", type=click.IntRange(1, 1000), default=5, show_default=True, help="Steps between decisions.")
@click.option(
    "--arm",
    "arms",
    multiple=True,
    type=click.Choice(ARMS),
    help="Of the suites zero and baselines, besides the policy: these alone; may be repeated.  [default: all but "
    "searched]",
)
@click.option("--workers", type=click.IntRange(1, 256), default=2, show_default=True, help="Tasks at the same time.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="CPU threads of each worker.")
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
    arms: tuple[str, ...],
    workers: int,
    threads: int,
) -> None:
    """Run policies without tuning against the best of 64 tuned trials; write results, table and figure to --out.

    An interrupted bench goes on where it was: every record is kept in OUT/results.json under the hash of what made it
    (constants and source of the policy, task, seed), so what has not changed is never run twice. OUT/SUITE.md is the
    table that is printed, OUT/SUITE.svg the performance profile. Workers do whole tasks: how many there are changes the
    time, not the numbers.

    \b
    Suites:
      zero       nothing perturbed: policies, Schedule-Free, Prodigy, rehearsal
      baselines  tuned baselines and other optimizers, for the other suites to find
      grid       learning rate x init scale x weight decay off by large factors
      init       each matrix off by its own 10^U(-1, 1)
      constants  each internal constant wrong by 8, against the policy as it is
      horizon    eight tasks at 30 times their length
      variants   one part changed at a time (design list alone)
      interval   decisions 50 to 1000 steps apart, reactive against forecast
      shocks     at half the run 40 % wrong labels, or the learning rate x 10

    \b
    Arms of the suite zero, besides the policy itself:
      rules        two older rules
      blind        the policy, never shown a validation loss
      foreign      Schedule-Free and Prodigy with their defaults
      rehearsal    the policy with a step size from short trials, their steps counted
      revalidated  a harder baseline: the best six trials validated on more seeds
      stopped      the tuned configuration, which ends with averaged or best weights too
      searched     a second search of as many trials: the noise of the baseline itself

    \b
    Examples:
      lipadvisor bench policies --quick
      lipadvisor bench policies --list design --suite variants
      lipadvisor bench policies --task wine --task patches --out runs/mine
    """  # noqa: D301 -- the backslash is click's mark for a verbatim block
    from lipadvisor.experiments.benchmarks.report import run_lists
    from lipadvisor.experiments.benchmarks.side_by_side import WorkerError

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
            arms=arms or _USUAL_ARMS,
            workers=workers,
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except WorkerError as error:
        raise click.ClickException(f"{error}; the same command goes on from {out / 'results.json'}.") from error
    except KeyboardInterrupt:
        raise click.ClickException(f"interrupted; the same command goes on from {out / 'results.json'}.") from None
    click.echo(text)
    click.echo(f"Wrote {out / suite}.md, {out / suite}.svg and {out / 'results.json'}.", err=True)


@bench.command()
@click.option(
    "--list", "which", type=click.Choice(("design", "confirmation", "both")), default="both", show_default=True
)
def tasks(which: str) -> None:
    """Print the tasks: name, list, optimizer, steps, batch size, what it is."""
    from lipadvisor.experiments.benchmarks.lists import CONFIRMATION, DESIGN

    for title, listed in (("design", DESIGN), ("confirmation", CONFIRMATION)):
        for task in listed if which in (title, "both") else ():
            numbers = f"{task.optimizer:5s} {task.steps:5d} steps, batches of {task.batch_size:2d}"
            click.echo(f"{task.name:20s} {title:12s} {numbers}  {task.summary}")


@bench.command()
@click.option("--layers", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Layers observed.")
def decision(layers: int) -> None:
    """Time one decision of each named policy, in microseconds of process time, best of 12 runs."""
    from lipadvisor.experiments.benchmarks.decision_cost import cost_table

    click.echo(f"{layers} layers, process time, best of 12 runs of 300 decisions\n")
    click.echo(cost_table(layers))


@bench.command()
@click.option("--task", "only", multiple=True, help="Run this task alone; may be repeated.")
@click.option("--seeds", type=click.IntRange(1, 100), default=4, show_default=True, help="Repetitions of each arm.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Factor on the weights at the start.")
def initializations(only: tuple[str, ...], seeds: int, scale: float) -> None:
    """Train the default with other initializations in the place of its own; print ratios of the test losses."""
    import torch

    from lipadvisor.experiments.benchmarks.initializations import INITIALIZATION_TASKS, initialization_table
    from lipadvisor.experiments.benchmarks.lists import DESIGN

    unknown = sorted(set(only) - {task.name for task in DESIGN})
    if unknown:
        raise click.ClickException(f"--task must be one of the design list, got {unknown[0]!r}.")
    if not scale > 0:
        raise click.ClickException(f"--scale must be positive, got {scale}.")
    torch.set_num_threads(1)
    click.echo(initialization_table([t for t in DESIGN if t.name in (only or INITIALIZATION_TASKS)], seeds, scale))


@bench.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", type=click.Path(path_type=Path), default=Path("docs/policies_results.md"), show_default=True)
def publish(folders: tuple[Path, ...], to: Path) -> None:
    """Gather the tables and figures that runs of the bench left in FOLDERS on one page."""
    from lipadvisor.experiments.benchmarks.publish import publish as write

    try:
        write(folders, to)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Wrote {to}.", err=True)
