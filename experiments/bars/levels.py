"""Bar: each level of measuring costs less than the next, in process CPU time of measured steps over plain ones.

Every level trains a twin of its own on the same batches, a few steps at a time; the order turns with the rounds.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import torch
from torch import nn

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.networks import NETWORKS
from lipadvisor.experiments.bars.one_thread import one_thread
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.probe import Probe

__all__ = ["run"]

LEVELS = ("norms", "drift", "noise", "full")
_NETWORKS = ("mlp", "convnet")
_BATCH, _BLOCK = 64, 5
_ROUNDS = 60
_WARM = 2  # rounds that are not counted
_MARGIN = 1.02  # what one level may take over the next before they count as out of order


class _Twin:
    """One training, with every step measured at a level or none measured."""

    def __init__(self, network: str, level: str | None, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = NETWORKS[network]()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9)
        self.probe = None if level is None else Probe(self.model, self.optimizer, level=level, interval=1, seed=seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.spent_s = 0, 0.0

    def run_block(self, images: Images) -> None:
        """Train ``_BLOCK`` steps and keep their CPU time, s each."""
        begun = time.process_time()
        for _ in range(_BLOCK):
            index_B = torch.randint(0, len(images.train_inputs), (_BATCH,), generator=self.generator)
            if self.probe is not None:
                self.probe.arm(self.step)
            self.optimizer.zero_grad()
            logits = self.model(images.train_inputs[index_B])
            nn.functional.cross_entropy(logits, images.train_targets[index_B]).backward()
            if self.probe is not None:
                self.probe.before_update()
            self.optimizer.step()
            if self.probe is not None:
                self.probe.after_update({0: 0.02}, {0: 0.0})
                self.probe.collect(self.step)
            self.step += 1
        self.spent_s = (time.process_time() - begun) / _BLOCK


def run(settings: BarSettings) -> Bar:
    """Measure the bar."""
    with one_thread():
        figures = {network: _ratios(network, settings) for network in _NETWORKS}
    checks = []
    for network, row in figures.items():
        for below, above in itertools.pairwise(LEVELS):
            share = row[below] / row[above]
            met = share <= _MARGIN
            checks.append(
                (f"{network}: a step with {below!r} over one with {above!r}", share, f"at most {_MARGIN}", met)
            )
    lines = [f"{'network':10} {'plain ms':>9}" + "".join(f"{level:>9}" for level in LEVELS)]
    for network, row in figures.items():
        lines.append(f"{network:10} {row['plain_ms']:9.3f}" + "".join(f"{row[level]:9.3f}" for level in LEVELS))
    lines.append("measured step over plain step, every step measured: median over the rounds")
    return Bar("levels", tuple(checks), figures, "\n".join(lines))


def _ratios(network: str, settings: BarSettings) -> dict[str, float]:
    """Return what a measured step costs at each level over a plain one."""
    images = load_images("digits")
    twins = {level: _Twin(network, level, settings.seed) for level in (None, *LEVELS)}
    names = list(twins)
    spent: dict[str | None, list[float]] = {name: [] for name in names}
    for number in range(_WARM + (8 if settings.quick else _ROUNDS)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            twins[name].run_block(images)
        for name in names:
            spent[name].append(twins[name].spent_s)
    plain = np.array(spent[None][_WARM:])
    ratios = {level: float(np.median(np.array(spent[level][_WARM:]) / plain)) for level in LEVELS}
    settings.progress(f"{network}: " + ", ".join(f"{level} {ratio:.2f}" for level, ratio in ratios.items()))
    return {"plain_ms": 1e3 * float(np.median(plain))} | ratios
