"""``lipadvisor audit module:factory``: what is known of a model before its first step."""

from __future__ import annotations

import importlib
import inspect
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["audit", "load_factory"]


def load_factory(text: str) -> Callable[[], Any]:
    """Return the callable named ``module:name``; the working directory counts as a place of modules.

    Raises:
        ValueError: it is not of that form, or cannot be imported, or is not callable.
    """
    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"a factory must be given as module:name, got {text!r}.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        hint = f"; leave out .py: {module.removesuffix('.py')}:{name}" if module.endswith(".py") else ""
        raise ValueError(f"cannot load {text!r}: {error}{hint}") from error
    except Exception as error:  # the module is the caller's: it may fail in any way
        raise ValueError(f"importing {module!r} raised {_line(error)}") from error
    if not callable(found):
        raise ValueError(f"{text!r} must be callable, got {type(found).__name__}.")
    factory: Callable[[], Any] = found
    return factory


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"--input must be positive whole numbers such as 4,3,32,32, got {text!r}.")
    return shape


def _called(text: str) -> Any:
    from torch import nn

    made = load_factory(text)
    if isinstance(made, nn.Module):
        return made  # a model that stands in the module as it is
    try:
        inspect.signature(made).bind()
    except TypeError as error:
        rule = "must be callable without arguments; name a function that gives them"
        raise ValueError(f"{text!r} {rule}: {error}") from error
    except ValueError:  # no signature to be had
        pass
    try:
        return made()
    except Exception as error:  # the factory is the caller's: it may fail in any way
        raise ValueError(f"{text!r} raised {_line(error)}") from error


def _line(error: Exception) -> str:
    """What was raised, and where, in a line."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


def _check_call(model: Any, batch: Any, drawn: bool) -> None:
    """Call the model once as the audit will.

    Raises:
        ValueError: it cannot be called so.
    """
    import torch

    from lipadvisor.modules.running import observed, run

    try:
        with observed(model), torch.no_grad():
            run(model, batch)
    except Exception as error:
        tokens = drawn and any(isinstance(module, torch.nn.Embedding) for module in model.modules())
        hint = "; a model that reads tokens needs --vocabulary" if tokens else ""
        raise ValueError(f"the model cannot be called with this batch: {_line(error)}{hint}") from error


def _model_and_batch(factory: str, batch: str | None, shape: tuple[int, ...] | None, vocabulary: int | None) -> Any:
    import torch

    made = _called(factory)
    model, given = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{factory!r} must return a torch.nn.Module or (module, batch), got {type(model).__name__}.")
    if batch is not None:
        return model, _called(batch)
    if shape is not None:
        generator = torch.Generator().manual_seed(0)
        if vocabulary is not None:
            return model, torch.randint(0, vocabulary, shape, generator=generator)
        return model, torch.randn(shape, generator=generator)
    if given is None:
        raise ValueError(f"{factory!r} returns no batch: let it return (model, batch), or give --input or --batch.")
    return model, given


class _Progress:
    """One line, rewritten on a terminal; elsewhere a line when the stage changes."""

    def __init__(self) -> None:
        self.begun, self.live, self.said = time.monotonic(), sys.stderr.isatty(), ""

    def __call__(self, line: str) -> None:
        elapsed = f"{time.monotonic() - self.begun:5.1f} s  {line}"
        if self.live:
            click.echo(f"\r\x1b[K{elapsed[:100]}" + ("\n" if line == "done" else ""), err=True, nl=False)
        elif not line.startswith(("constant of ", "operation ", "gradient of ")):  # not one line a module in a file
            click.echo(elapsed, err=True)


@click.command()
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--batch", metavar="MODULE:NAME", help="Callable that returns the batch.")
@click.option("--input", "shape", metavar="4,3,32,32", help="Shape of a random batch instead.")
@click.option("--vocabulary", type=click.IntRange(1), help="The random batch holds tokens below this number.")
@click.option("--warmup", "warmup_steps", type=click.IntRange(0), help="Warmup steps that are planned; judged.")
@click.option("--steps", "total_steps", type=click.IntRange(1), help="Training steps that are planned.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with a picture of gain along depth.")
@click.option("--local/--no-local", default=True, show_default=True, help="Measure the network's local constant.")
@click.option("--seed", default=0, show_default=True, help="Of the random perturbation.")
def audit(
    factory: str,
    batch: str | None,
    shape: str | None,
    vocabulary: int | None,
    warmup_steps: int | None,
    total_steps: int | None,
    as_json: bool,
    html: Path | None,
    local: bool,
    seed: int,
) -> None:
    """Audit a model before its first step: constants, gains, alarms with their cures, advice.

    MODULE:FACTORY names a callable that returns the model, or (model, batch), or a model; MODULE is imported as Python
    does it, also from the working directory. The exit code is 0 also where there are alarms; what they ask for is done
    by lipadvisor.modules.apply_cures(model, findings, batch), which goes on until nothing is left.

    \b
    Examples:
      lipadvisor audit mypackage.models:build --input 4,3,32,32
      lipadvisor audit train:make_gpt --input 2,64 --vocabulary 50257 --warmup 0 --steps 10000 --html audit.html
      lipadvisor audit train:model_and_batch --json
    """  # noqa: D301 -- the backslash is click's mark for a verbatim block
    try:
        model, example = _model_and_batch(factory, batch, _shape(shape), vocabulary)
        _check_call(model, example, drawn=batch is None and shape is not None and vocabulary is None)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    from lipadvisor.modules.examine import audit as examine
    from lipadvisor.trajectory.whole_files import write_text

    try:
        result = examine(
            model,
            example,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            local=local,
            seed=seed,
            progress=_Progress(),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if html is not None:
        write_text(html, result.to_html(f"Audit of {factory}"))
        click.echo(f"{html}", err=True)
    click.echo(result.to_json() if as_json else result.table())
