"""The command line. Each command imports what it needs when it runs, so that help is there at once."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipadvisor import __version__

if TYPE_CHECKING:
    from lipadvisor.trajectory import Run

__all__ = ["main"]

_INPUT_ERROR = 2
_INTERRUPTED = 130  # as a shell has it after Ctrl-C
_ROWS_SHOWN = 20  # of a replay, in the terminal


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what is wrong with the input into one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(_INPUT_ERROR)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with:  lipadvisor demo   (some minutes; ends with a table and an HTML report)",
)
def main() -> None:
    """Watch a network's Lipschitz continuity while it trains, predict it, and steer the hyperparameters."""


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Directory of the run. The same command with the same directory resumes.",
)
@click.option("--quick", is_flag=True, help="A tiny version: two arms, two configurations, 30 steps.")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME",
    help="digits_mlp or digits_convnet; may be repeated.  [default: both]",
)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    metavar="NAME",
    help="constant, cosine, wsd, lipschitz_tuned or lipschitz; may be repeated.  [default: all]",
)
@click.option("--trials", type=int, help="Configurations for each tuned arm and workload.  [default: 8]")
@click.option("--steps", type=int, help="Optimizer steps of every trial.  [default: 300]")
@click.option("--replicates", type=int, help="Fresh seeds for each selected configuration.  [default: 3]")
@click.option("--seed", type=int, help="Of searches and repetitions.  [default: 0]")
@click.option("--policy-at", metavar="trial|hub", help="Where decisions are made.  [default: trial]")
@click.option(
    "--max-overhead",
    type=float,
    metavar="SHARE",
    help="Share of a trial's time that measuring may take, in (0, 1]; half a second in all is granted in any case. "
    "Without it every step is measured, except in the searches of the baselines.",
)
@click.option("--address", help="Ray cluster to join; without it and RAY_ADDRESS, Ray starts on this machine.")
@click.option("--concurrent", type=int, default=2, show_default=True, help="Trials at a time.")
@click.option("--fresh", is_flag=True, help="Start over: remove what an earlier demo left in the directory.")
def demo(
    out: Path,
    quick: bool,
    workloads: tuple[str, ...],
    arms: tuple[str, ...],
    address: str | None,
    concurrent: int,
    fresh: bool,
    **numbers: Any,
) -> None:
    """Run the main job: Lipschitz-aware against tuned schedules.

    Ray Tune trains a perceptron and a ConvNet on scikit-learn's digits. Constant, cosine and warmup-stable-decay
    schedules search learning rate, weight decay and warmup; the Lipschitz-aware policy searches its own constants, and
    stands beside them untuned. What validation selected is repeated on fresh seeds and reported on a test split. Ctrl-C
    stops cleanly; the same command goes on.

    \b
    Examples:
      lipadvisor demo
      lipadvisor demo --quick --out runs/quick
      lipadvisor demo --workload digits_mlp --arm cosine --arm lipschitz --trials 16 --out runs/mine
      lipadvisor demo --policy-at hub --out runs/hub
      lipadvisor demo --address head:6379 --concurrent 32
    """  # noqa: D301 -- the backslash is click's mark for a verbatim block
    code = _INTERRUPTED
    try:
        with _one_line_errors():
            from lipadvisor.experiments.settings import QUICK, Settings

            given = {name: value for name, value in numbers.items() if value is not None}
            given |= {name: value for name, value in (("workloads", workloads), ("arms", arms)) if value}
            settings = Settings(**{**(QUICK if quick else {}), **given})
            if concurrent < 1:
                raise ValueError(f"concurrent must be at least 1, got {concurrent}.")
            from lipadvisor.experiments.demo import run_demo

            code = run_demo(settings, out, stream=sys.stdout, address=address, concurrent=concurrent, fresh=fresh)
    except KeyboardInterrupt:  # while the libraries were loading, too
        click.echo(f"\nStopped. What had finished is kept in {out}; the same command goes on from there.")
    sys.exit(code)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: report.html in RUN]")
def report(run: Path, out: Path | None) -> None:
    """Write the HTML report of a run.

    It is one file and loads nothing from elsewhere. RUN is the directory of a demo, or the one given to
    Advisor(out=...). It may still be going on.

    \b
    Examples:
      lipadvisor report runs/demo
      lipadvisor report runs/mine --out mine.html
    """  # noqa: D301
    with _one_line_errors():
        from lipadvisor.report import endangered_trials, write_report
        from lipadvisor.trajectory import load_run

        click.echo(write_report(run, out))
        loaded = load_run(run)
        found = endangered_trials(loaded)
        if found:  # the path alone goes to standard output, for scripts
            told = f"{', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"
            click.echo(f"Early warning of divergence in {len(found)} of {len(loaded.trials)} trials: {told}.", err=True)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--policy", "policy_name", required=True, metavar="NAME", help="See: lipadvisor policies.")
@click.option("--param", "parameters", multiple=True, metavar="KEY=VALUE", help="Of the policy; may be repeated.")
@click.option("--trial", metavar="NAME", help="Needed where the run has several.")
@click.option("--json", "as_json", is_flag=True, help="Print every step as JSON.")
@click.option("--out", type=click.Path(path_type=Path), help="Write every step as CSV.")
def replay(
    run: Path, policy_name: str, parameters: tuple[str, ...], trial: str | None, as_json: bool, out: Path | None
) -> None:
    """Ask another policy about a recorded run.

    Shows learning rate and weight decay as recorded, beside what the policy would have decided.

    The observations stay as recorded: where the proposal differs, what follows would have differed too.

    \b
    Examples:
      lipadvisor replay runs/mine --policy cosine --param lr=0.003
      lipadvisor replay runs/demo --trial digits_mlp-lipschitz-replicate-000 --policy wsd --out wsd.csv
    """  # noqa: D301
    with _one_line_errors():
        from lipadvisor.policies import named_policy
        from lipadvisor.report.replay import replayed
        from lipadvisor.trajectory import load_run, write_text

        policy = named_policy(policy_name, **_parameters(parameters))
        loaded = load_run(run)
        frame = replayed(loaded.trial(_chosen(loaded, trial)), policy)
        if out is not None:
            click.echo(f"{len(frame)} rows in {write_text(out, frame.to_csv(index=False))}", err=as_json)
    if as_json:
        click.echo(frame.to_json(orient="records", indent=1))
    elif out is None:
        steps = frame["step"].unique()
        shown = frame[frame["step"].isin(steps[:: max(1, -(-len(frame) // _ROWS_SHOWN))])]
        click.echo(shown.to_string(index=False, na_rep="held", float_format=lambda value: f"{value:.4g}"))
        if len(shown) < len(frame):
            told = f"{shown['step'].nunique()} of {len(steps)} recorded steps"
            click.echo(f"{told}; --out FILE.csv or --json for all.")


@main.command()
def policies() -> None:
    """List the policies and their parameters.

    Each is for --policy of the other commands and for Advisor(policy=...); docs/policies.md describes them, and what
    combines them.
    """
    from lipadvisor.policies import POLICIES

    for name, kind in POLICIES.items():
        about = _plain((kind.__doc__ or "").strip().splitlines()[0])
        fields = [item for item in dataclasses.fields(kind) if item.init]  # type: ignore[arg-type]
        defaults = ", ".join(f"{item.name}={item.default!r}" for item in fields)
        click.echo(name)
        click.echo(click.wrap_text(about, 110, "  ", "  "))
        click.echo(click.wrap_text(defaults, 110, "  ", "  ") + "\n")


def _plain(text: str) -> str:
    """Return a docstring's line without its markup."""
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


def _elsewhere(name: str, module: str, about: str) -> None:
    """Add the command ``name`` of ``module``; the module is imported when the command runs."""

    @main.command(name, help=about, add_help_option=False, context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: Sequence[str]) -> None:
        real: click.Command = getattr(importlib.import_module(module), name)
        real.main(list(arguments), prog_name=f"lipadvisor {name}")


_elsewhere("audit", "lipadvisor.modules.command", "Audit a model before its first step: alarms, cures, advice.")
_elsewhere("reproduce", "lipadvisor.experiments.reproduce.command", "Rerun a published result: do the data agree?")
_elsewhere("bars", "lipadvisor.experiments.bars.command", "Measure what dynamics and forecast are held to.")
_elsewhere("bench", "lipadvisor.experiments.benchmarks.command", "Compare policies with baselines on many tasks.")


def _parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; a value is JSON where it can be read as such, else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--param must be KEY=VALUE, got {pair!r}.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found[key] = tuple(value) if isinstance(value, list) else value
    return found


def _chosen(run: Run, trial: str | None) -> str:
    names = run.trials
    if not names:
        raise ValueError(f"{run.path} holds no trial: nothing has been recorded there yet.")
    if trial is None and len(names) == 1:
        return names[0]
    if trial not in names:
        what = "has several trials; choose one with --trial" if trial is None else f"has no trial {trial!r}"
        raise ValueError(f"{run.path} {what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}.")
    return trial
