"""The suites of the bench: which runs they ask for, and what these come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lipadvisor.experiments.benchmarks.baseline import Trial
from lipadvisor.experiments.benchmarks.blind import Blind
from lipadvisor.experiments.benchmarks.cells import Cell, starts, tuned_cells, without_budget
from lipadvisor.experiments.benchmarks.drive import Shock
from lipadvisor.experiments.benchmarks.frozen import frozen_hash
from lipadvisor.experiments.benchmarks.rules import FirstRule, SecondRule
from lipadvisor.experiments.benchmarks.runs import Runs
from lipadvisor.experiments.benchmarks.score import loss_ratio
from lipadvisor.experiments.benchmarks.shocks import LABEL_NOISE, LR_FACTOR, label_noise, written_lr
from lipadvisor.experiments.benchmarks.suites import INIT_SCALES, INTERVALS, perturbed_constants
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.experiments.benchmarks.variants import VARIANTS
from lipadvisor.policies import LeadTimeGuard, Lipschitz, Policy, Predictive, named_policy

__all__ = ["Bench", "zero_tuning_policies"]

SHOCKS: dict[str, tuple[Shock | None, int]] = {  # by name: the shock, and the steps between decisions
    "none": (None, 5),
    f"labels {LABEL_NOISE:g}": (label_noise(), 5),
    f"lr x{LR_FACTOR:g}": (written_lr(), 5),
    f"lr x{LR_FACTOR:g}, decided every 50": (written_lr(), 50),
}
_HORIZON = 30  # factor of the horizon suite


def zero_tuning_policies(default: str = "lipschitz") -> dict[str, Policy[Any]]:
    """Return the arms that run through the contract, none of them tuned."""
    return {default: named_policy(default), "first_rule": FirstRule(), "second_rule": SecondRule()}


class Bench(Runs):
    """The suites over one list of tasks: each returns ratios by arm and task."""

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
            if "searched" in self.arms:
                arms["tuned, searched again"] = self.searched_again(task)
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
            if "searched" in self.arms:
                arms["tuned, searched again"] = self.searched_again(task)
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

    def _against_baseline(self, run: Callable[[Task], dict[str, list[float]]]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            base = self.baseline(task)["test"]
            for arm, losses in run(task).items():
                found.setdefault(arm, {})[task.name] = loss_ratio(losses, base)
        return found
