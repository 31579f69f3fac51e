"""The single runs that a bench is made of, each made once and kept: baselines, cells, other optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lipadvisor.experiments.benchmarks.baseline import Trial, revalidated, tuned
from lipadvisor.experiments.benchmarks.cells import Cell
from lipadvisor.experiments.benchmarks.drive import Shock, drive
from lipadvisor.experiments.benchmarks.foreign import FOREIGN, train_foreign
from lipadvisor.experiments.benchmarks.frozen import frozen_hash
from lipadvisor.experiments.benchmarks.function_mean import FunctionMean
from lipadvisor.experiments.benchmarks.progress import Progress
from lipadvisor.experiments.benchmarks.rehearsal import CANDIDATES, rehearse
from lipadvisor.experiments.benchmarks.rules import SecondRule
from lipadvisor.experiments.benchmarks.store import Results, source_hash, task_fingerprint
from lipadvisor.experiments.benchmarks.suites import scale_all, scale_each
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.policies import Averaging, Lipschitz, Overfitting, Policy, chain, named_policy

__all__ = ["ZERO_ARMS", "Runs", "validate_every"]

_DRIVE_FILES = ("drive.py", "averages.py", "measure.py", "operators.py")
_FUNCTION_READERS = (SecondRule, FunctionMean)  # the others are spared the further forward pass
_NEVER = 1_000_000  # validations in a row
_MEMORY = Lipschitz().averaging  # the default's, so that both ends are made alike
_MOST_MEMBERS = 64  # trained at once
ZERO_ARMS = ("rules", "blind", "foreign", "rehearsal", "revalidated", "stopped")  # unless others are asked for


class Runs:
    """Makes the runs of one list of tasks and keeps them.

    Args:
        results: where records are kept.
        tasks: the tasks.
        seeds: repetitions of each arm.
        trials: of the baseline's search.
        decide_every: steps between measurements and decisions.
        default: name of the policy under test.
        arms: of the suite zero, see ``ZERO_ARMS``; the default always runs.
        progress: counts steps of single members.
    """

    def __init__(
        self,
        results: Results,
        tasks: Sequence[Task],
        *,
        seeds: int = 5,
        trials: int = 64,
        decide_every: int = 5,
        default: str = "lipschitz",
        arms: Sequence[str] = ZERO_ARMS,
        progress: Progress | None = None,
    ) -> None:
        self.results, self.tasks, self.seeds, self.trials = results, tuple(tasks), seeds, trials
        self.decide_every, self.default, self.arms = decide_every, default, tuple(arms)
        self.progress = progress or Progress(1.0, every_s=1e9)

    def baseline(self, task: Task, steps: int | None = None, trials: int | None = None) -> dict[str, Any]:
        """Return the tuned baseline's record."""
        trials = self.trials if trials is None else trials
        return self.results.get(
            self._baseline_spec(task, steps, trials),
            lambda: tuned(task, trials=trials, repeats=self.seeds, steps=steps, tick=self._ticker(task, trials)),
        )

    def known_baselines(self) -> float:
        """Return the work of the baselines that are there already: most of a bench, so it is counted beforehand."""
        known = [t for t in self.tasks if self.results.has(self._baseline_spec(t, None, self.trials))]
        return float(sum(2 * self.trials * task.steps for task in known))

    def _baseline_spec(self, task: Task, steps: int | None, trials: int) -> dict[str, Any]:
        return {"arm": "tuned", "trials": trials, "seeds": self.seeds, **task_fingerprint(task, steps)}

    def searched_again(self, task: Task) -> list[float]:
        """Return the test losses of a second search of as many trials, drawn with another seed.

        What it comes to against the first is the baseline's own noise: nothing that is as good as a tuned run can be
        expected to lie closer to one search than another search does.
        """
        spec = {"arm": "searched", "trials": self.trials, "seeds": self.seeds, **task_fingerprint(task)}
        units = 2 * self.trials * task.steps
        again = self._get(
            spec,
            units,
            lambda: tuned(task, trials=self.trials, repeats=self.seeds, seed=1, tick=self._ticker(task, self.trials)),
        )
        return list(again["test"])

    def revalidated(self, task: Task, record: Mapping[str, Any]) -> list[float]:
        """Return the test losses of the harder baseline: the selection of ``record`` repeated on more seeds."""
        spec = {"arm": "revalidated", "trials": self.trials, "seeds": self.seeds, **task_fingerprint(task)}
        members = self.trials // 3
        again = self._get(
            spec, 2 * members * task.steps, lambda: revalidated(task, record, tick=self._ticker(task, members))
        )
        return list(again["test"])

    def stopped(self, task: Task, record: Mapping[str, Any]) -> list[float]:
        """Return the test losses of the tuned configuration that ends as the default does.

        With the average of its weights, or with its best ones by the default's rule: it is shown the same validation
        losses, and never goes back before the end.
        """
        last_word = Overfitting(patience=_NEVER)
        return self.policies(task, {"": chain(Trial(**record["best"]).policy(), last_word, Averaging(_MEMORY))})[""]

    def policies(self, task: Task, arms: Mapping[str, Policy[Any]], **options: Any) -> dict[str, list[float]]:
        """Return the test losses by seed of each arm, all trained together."""
        cells = [Cell(name, policy, seed) for name, policy in arms.items() for seed in range(self.seeds)]
        return self.cells(task, cells, **options)

    def cells(
        self,
        task: Task,
        cells: Sequence[Cell],
        *,
        suite: str = "zero",
        steps: int | None = None,
        scale_each_decades: float = 0.0,
        decide_every: int | None = None,
        shock: tuple[str, Shock | None] = ("none", None),
    ) -> dict[str, list[float]]:
        """Return the test losses of ``cells``, by label and in order; only those not yet known are run."""
        every = self.decide_every if decide_every is None else decide_every
        common = {
            "suite": suite,
            "decide_every": every,
            "validate_every": validate_every(task, steps),
            "drive": source_hash(*(Path(__file__).parent / name for name in _DRIVE_FILES)),
            "each": scale_each_decades,
            **(
                {}
                if shock[1] is None
                else {"shock": shock[0], "shocks": source_hash(Path(__file__).parent / "shocks.py")}
            ),
            **task_fingerprint(task, steps),
        }
        specs = [{"policy": frozen_hash(c.policy), "seed": c.seed, "scale": c.scale, **common} for c in cells]
        missing = [index for index, spec in enumerate(specs) if not self.results.has(spec)]
        self.progress.skip((len(cells) - len(missing)) * (task.steps if steps is None else steps))
        for start in range(0, len(missing), _MOST_MEMBERS):
            part = missing[start : start + _MOST_MEMBERS]
            chosen = [cells[index] for index in part]
            all_scaled = scale_all(tuple(cell.scale for cell in chosen))
            outcome = drive(
                task,
                [cell.policy for cell in chosen],
                [cell.seed for cell in chosen],
                steps=steps,
                perturb=scale_each(scale_each_decades) if scale_each_decades else all_scaled,
                decide_every=every,
                validate_every=validate_every(task, steps),
                shock=shock[1],
                function_every=every if any(isinstance(c.policy, _FUNCTION_READERS) for c in chosen) else 0,
                tick=self._ticker(task, len(part)),
            )
            for place, index in enumerate(part):
                losses = {"train": outcome.train, "validation": outcome.validation, "test": outcome.test}
                told = {"reasons": outcome.reasons[place]} if suite == "shocks" else {}
                self.results.add(specs[index], {key: value[place] for key, value in losses.items()} | told)
            self.results.write()
        found: dict[str, list[float]] = {}
        for cell, spec in zip(cells, specs, strict=True):
            found.setdefault(cell.label, []).append(self.results.record(spec)["test"])
        return found

    def foreign(self, task: Task) -> dict[str, list[float]]:
        """Return the test losses by seed of the optimizers that need no tuning of their own."""
        found: dict[str, list[float]] = {}
        for name in FOREIGN:
            for seed in range(self.seeds):
                spec = {"arm": name, "seed": seed, **task_fingerprint(task)}
                record = self._get(
                    spec,
                    4 * task.steps,
                    lambda n=name, s=seed: train_foreign(task, n, s, self._ticker(task, 4)),  # type: ignore[misc]
                )
                found.setdefault(name, []).append(record["test"])
        return found

    def rehearsed(self, task: Task) -> list[float]:
        """Return the test losses by seed of the default with a rehearsed step size, its steps counted."""
        spec = {
            "arm": "rehearsal",
            "policy": frozen_hash(named_policy(self.default)),
            "candidates": CANDIDATES,
            "seeds": self.seeds,
            **task_fingerprint(task),
        }
        record = self._get(
            spec,
            self.seeds * task.steps,
            lambda: rehearse(
                task, self.default, range(self.seeds), decide_every=self.decide_every,
                validate_every=validate_every(task),
                tick=self._ticker(task, self.seeds),
            ),
        )  # fmt: skip
        return list(record["test"])

    def _get(self, spec: Mapping[str, Any], units: float, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the record of ``spec``; what was there already is counted as work done."""
        if self.results.has(spec):
            self.progress.skip(units)
        return self.results.get(spec, compute)

    def _ticker(self, task: Task, members: int) -> Callable[[int], None]:
        return lambda step: self.progress.add(members, task.name)


def validate_every(task: Task, steps: int | None = None) -> int:
    """Return the steps between the validation losses that policies are shown: about twenty times a run."""
    return max(1, (task.steps if steps is None else steps) // 20)
