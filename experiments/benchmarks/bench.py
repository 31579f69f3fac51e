"""The bench itself: which runs there are, run once each, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipadvisor.experiments.benchmarks.baseline import Trial, revalidated, tuned
from lipadvisor.experiments.benchmarks.blind import Blind
from lipadvisor.experiments.benchmarks.cells import Cell, starts, tuned_cells, without_budget
from lipadvisor.experiments.benchmarks.drive import Shock, drive
from lipadvisor.experiments.benchmarks.foreign import FOREIGN, train_foreign
from lipadvisor.experiments.benchmarks.frozen import frozen_hash
from lipadvisor.experiments.benchmarks.function_mean import FunctionMean
from lipadvisor.experiments.benchmarks.progress import Progress
from lipadvisor.experiments.benchmarks.rehearsal import CANDIDATES, rehearse
from lipadvisor.experiments.benchmarks.rules import FirstRule, SecondRule
from lipadvisor.experiments.benchmarks.score import loss_ratio
from lipadvisor.experiments.benchmarks.shocks import LABEL_NOISE, LR_FACTOR, label_noise, written_lr
from lipadvisor.experiments.benchmarks.store import Results, source_hash, task_fingerprint
from lipadvisor.experiments.benchmarks.suites import (
    INIT_SCALES,
    INTERVALS,
    perturbed_constants,
    scale_all,
    scale_each,
)
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.experiments.benchmarks.variants import VARIANTS
from lipadvisor.policies import (
    Averaging,
    LeadTimeGuard,
    Lipschitz,
    Overfitting,
    Policy,
    Predictive,
    chain,
    named_policy,
)

__all__ = ["ZERO_ARMS", "Bench", "zero_tuning_policies"]

_DRIVE_FILES = ("drive.py", "averages.py", "measure.py", "operators.py")
SHOCKS: dict[str, tuple[Shock | None, int]] = {  # by name: the shock, and the steps between decisions
    "none": (None, 5),
    f"labels {LABEL_NOISE:g}": (label_noise(), 5),
    f"lr x{LR_FACTOR:g}": (written_lr(), 5),
    f"lr x{LR_FACTOR:g}, decided every 50": (written_lr(), 50),
}
_FUNCTION_READERS = (SecondRule, FunctionMean)  # the others are spared the further forward pass
_NEVER = 1_000_000  # validations in a row
_MEMORY = Lipschitz().averaging  # the default's, so that both ends are made alike
_MOST_MEMBERS = 64  # trained at once
ZERO_ARMS = ("rules", "blind", "foreign", "rehearsal", "revalidated", "stopped")
_HORIZON = 30  # factor of the horizon suite


def zero_tuning_policies(default: str = "lipschitz") -> dict[str, Policy[Any]]:
    """Return the arms that run through the contract, none of them tuned."""
    return {default: named_policy(default), "first_rule": FirstRule(), "second_rule": SecondRule()}


class Bench:
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

    # -- arms --------------------------------------------------------------------------------------------------------

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

    # -- suites ------------------------------------------------------------------------------------------------------

    def zero(self) -> dict[str, dict[str, float]]:
        """Return the ratio to the tuned baseline by arm and task, nothing perturbed."""
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            record = self.baseline(task)
            base = record["test"]
            untuned = zero_tuning_policies(self.default)
            if "rules" not in self.arms:
                untuned = {self.default: untuned[self.default]}
            if "blind" in self.arms:
                untuned[f"{self.default}, blind to validation"] = Blind(untuned[self.default])
            arms = self.policies(task, untuned)
            if "foreign" in self.arms:
                arms |= self.foreign(task)
            if "rehearsal" in self.arms:
                arms["rehearsal"] = self.rehearsed(task)
            if "revalidated" in self.arms:
                again = self.revalidated(task, record)
                arms["tuned, revalidated"] = again
                found.setdefault(f"{self.default} against revalidated", {})[task.name] = loss_ratio(
                    arms[self.default], again
                )
            if "stopped" in self.arms:
                arms["tuned, same end"] = stopped = self.stopped(task, record)
                found.setdefault(f"{self.default} against the same end", {})[task.name] = loss_ratio(
                    arms[self.default], stopped
                )
            for arm, losses in arms.items():
                found.setdefault(arm, {})[task.name] = loss_ratio(losses, base)
        return found

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return the ratios of the harder baseline and of other optimizers; no policy under test runs."""
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            record = self.baseline(task)
            arms = self.foreign(task) if "foreign" in self.arms else {}
            arms["tuned, revalidated"] = self.revalidated(task, record)
            for arm, losses in arms.items():
                found.setdefault(arm, {})[task.name] = loss_ratio(losses, record["test"])
        return found

    def grid(self) -> dict[str, dict[str, float]]:
        """Return ratios over the user's learning rates, init scales and weight decays, by arm and cell.

        A policy in takeover mode never reads the user's learning rate and weight decay, so its cells differ by the
        init scale alone; each is the mean of all seeds, so that it is judged and not the luck of a seed. The tuned
        configuration is run in every cell, on one seed.
        """
        found: dict[str, dict[str, float]] = {}
        policy = named_policy(self.default)
        for task in self.tasks:
            record = self.baseline(task)
            best, base = Trial(**record["best"]), record["test"]
            owned = [Cell(f"x{scale:g}", policy, seed, scale) for scale in INIT_SCALES for seed in range(self.seeds)]
            for cell, losses in self.cells(task, owned, suite="grid").items():
                found.setdefault(self.default, {})[f"{task.name} {cell}"] = loss_ratio(losses, base)
            for cell, losses in self.cells(task, list(tuned_cells(best)), suite="grid").items():
                found.setdefault("tuned, perturbed", {})[f"{task.name} {cell}"] = loss_ratio(losses, base)
        return found

    def init(self) -> dict[str, dict[str, float]]:
        """Return ratios where each matrix starts off by its own factor, 10^U(-1, 1)."""
        arms = {self.default: named_policy(self.default)}
        return self._against_baseline(lambda task: self.policies(task, arms, suite="init", scale_each_decades=1.0))

    def constants(self) -> dict[str, dict[str, float]]:
        """Return ratios to the *unperturbed default*, each internal constant wrong by 8 either way."""
        policy = named_policy(self.default)
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            own = self.policies(task, {self.default: policy})[self.default]
            changed = self.policies(task, perturbed_constants(policy), suite="constants")
            for name, losses in changed.items():
                found.setdefault(name, {})[task.name] = loss_ratio(losses, own)
        return found

    def variants(self) -> dict[str, dict[str, float]]:
        """Return ratios of the default with one part changed at a time."""
        return self._against_baseline(lambda task: self.policies(task, VARIANTS))

    def horizon(self, trials: int = 16) -> dict[str, dict[str, float]]:
        """Return the ratio to the best of ``trials`` at a horizon 30 times as long."""
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            steps = task.steps * _HORIZON
            base = self.baseline(task, steps, trials)["test"]
            losses = self.policies(task, {self.default: named_policy(self.default)}, suite="horizon", steps=steps)
            for arm, values in losses.items():
                found.setdefault(arm, {})[task.name] = loss_ratio(values, base)
        return found

    def interval(self) -> dict[str, dict[str, float]]:
        """Return ratios to the default deciding as often as it may, of decisions that are far apart.

        At each interval stand, in the same line, the reactive budget, the one planned by forecast, and the reactive one
        told to look as far ahead as the interval is long: what the last gains is no merit of the forecast. From
        PyTorch's initialization, and from one three times as large, where early decisions matter.
        """
        policy = named_policy(self.default)
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            frequent = self.cells(task, starts({"": policy}, self.seeds), suite="interval")
            for every in (interval for interval in INTERVALS if interval < task.steps):
                arms: dict[str, Policy[Any]] = {"reactive": policy, "forecast": Predictive(interval=every)}
                if isinstance(policy, Lipschitz):
                    arms["told"] = replace(policy, lookahead=min(1.0, every / task.steps))
                    arms["rollback only"] = without_budget(policy)
                    arms["lead time"] = without_budget(policy, LeadTimeGuard(interval=every))
                cells = starts(arms, self.seeds)
                for label, losses in self.cells(task, cells, suite="interval", decide_every=every).items():
                    arm, start = label.rsplit(" ", 1)
                    ratio = loss_ratio(losses, frequent[f" {start}"])
                    found.setdefault(f"{arm} {every}", {})[f"{task.name} init {start}"] = ratio
        return found

    def shocks(self) -> dict[str, dict[str, float]]:
        """Return ratios of runs with a shock at half their length, and the share of runs whose reasons tell it.

        Other labels: the ratio to the tuned configuration under the same shock. A written learning rate: to the same
        policy without it; the tuned configuration keeps the written rate to its end, as a schedule that multiplies
        a base rate does. ``told`` is the share of runs that gave the reason ``shock:loss`` at or after the shock,
        ``false alarms`` that of the runs without one which gave it at any time.
        """
        policy = named_policy(self.default)
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            plain = self.policies(task, {"": policy}, suite="shocks")[""]
            found.setdefault("false alarms", {})[task.name] = self._told(task, policy, "none", 0)
            for name, (shock, every) in SHOCKS.items():
                if shock is None or (name.startswith("labels") and task.loss_kind == "mse"):
                    continue
                option: dict[str, Any] = {"suite": "shocks", "decide_every": every, "shock": (name, shock)}
                losses = self.policies(task, {"": policy}, **option)[""]
                if name.startswith("labels"):
                    best = Trial(**self.baseline(task)["best"]).policy()
                    base = self.policies(task, {"tuned": best}, **option)["tuned"]
                    found.setdefault(f"{name}, told", {})[task.name] = self._told(task, policy, name, task.steps // 2)
                else:
                    base = plain
                    if every > self.decide_every:
                        base = self.policies(task, {"": policy}, suite="shocks", decide_every=every)[""]
                found.setdefault(name, {})[task.name] = loss_ratio(losses, base)
        return found

    def _told(self, task: Task, policy: Policy[Any], name: str, since: int) -> float:
        """Return the share of the runs under a shock that gave the reason ``shock:loss`` from ``since`` on."""
        told: list[bool] = [
            record["reasons"].get("shock:loss", -1) >= since
            for record in self.results.records.values()
            if record["spec"].get("suite") == "shocks"
            and record["spec"]["task"] == task.name
            and record["spec"]["policy"] == frozen_hash(policy)
            and record["spec"].get("shock", "none") == name
            and record["spec"]["decide_every"] == self.decide_every
        ]
        return sum(told) / len(told)

    # -- details -----------------------------------------------------------------------------------------------------

    def _against_baseline(self, run: Callable[[Task], dict[str, list[float]]]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            base = self.baseline(task)["test"]
            for arm, losses in run(task).items():
                found.setdefault(arm, {})[task.name] = loss_ratio(losses, base)
        return found

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
