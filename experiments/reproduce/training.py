"""One training run under measurement: the probe alone, no policy; the same recipe gives the same run, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor.dynamics import clipped
from lipadvisor.experiments.reproduce.images import Images
from lipadvisor.experiments.reproduce.regularizers import REGULARIZERS, Regularizer, soft_cross_entropy
from lipadvisor.experiments.workloads import Batches, Split
from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

__all__ = ["OPTIMIZERS", "OnStep", "OptimizerKind", "Recipe", "Run", "accuracy", "make_optimizer", "steps_for", "train"]

OptimizerKind = Literal["sgd", "momentum", "adamw"]
OPTIMIZERS: tuple[OptimizerKind, ...] = ("sgd", "momentum", "adamw")
LEARNING_RATES: dict[OptimizerKind, float] = {"sgd": 0.05, "momentum": 0.01, "adamw": 1e-3}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run, apart from the images and the model.

    Attributes:
        optimizer: "sgd", "momentum" (0.9) or "adamw".
        steps: optimizer steps, >= 1.
        lr: learning rate; None is the optimizer's own in ``LEARNING_RATES``.
        batch_size: samples of a batch.
        regularizer: one of the nine settings.
        seed: of initialization, dropout and transforms.
        batch_seed: of the order of batches; None is ``seed``.
        level: of the probe, see :class:`~lipadvisor.probe.Probe`.
        interval: steps between measurements.
        noise_interval: measurements between two of the noise, which the others carry on; >= 1.
        schedule: factor on the learning rate at each step; None is constant. Its repr names it.
        shrink_schedule: ``lr * weight_decay`` at each step, in place of the regularizer's. Its repr names it.
    """

    optimizer: OptimizerKind
    steps: int
    lr: float | None = None
    batch_size: int = 64
    regularizer: Regularizer = REGULARIZERS["none"]
    seed: int = 0
    batch_seed: int | None = None
    level: str = "full"
    interval: int = 1
    noise_interval: int = 1
    schedule: Callable[[int], float] | None = None
    shrink_schedule: Callable[[int], float] | None = None

    @property
    def identity(self) -> str:
        """A line that is the same for two recipes exactly if they are."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return repr(values | {"regularizer": self.regularizer.name, "lr": self.base_lr})

    @property
    def base_lr(self) -> float:
        """The learning rate before any schedule."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr


class OnStep(Protocol):
    """Called after every step."""

    def __call__(self, step: int, loss: float, terms: Terms | None) -> bool | None:
        """Take in what the step gave; True ends the run."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has ended."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int  # taken
    clipped: int  # of these, with the gradient clipped


def make_optimizer(model: nn.Module, kind: OptimizerKind, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer, without any decay of its own."""
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9 if kind == "momentum" else 0.0)


def train(recipe: Recipe, images: Images, build: Callable[[], nn.Module], on_step: OnStep) -> Run:
    """Train a fresh model and report every step. torch's own generator is left as it was.

    Args:
        recipe: what to do.
        images: what to train on.
        build: makes the model, from torch's default generator (seeded by the recipe).
        on_step: called after every step with the batch's loss before it and the measurement, if one was made.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _train(recipe, images, build(), on_step)


def _train(recipe: Recipe, images: Images, model: nn.Module, on_step: OnStep) -> Run:
    setting = recipe.regularizer
    optimizer = make_optimizer(model, recipe.optimizer, recipe.base_lr)
    probe = Probe(
        model,
        optimizer,
        recipe.level,
        interval=recipe.interval,
        seed=recipe.seed,
        example_input=images.train_inputs[:2],
    )
    batch_seed = recipe.seed if recipe.batch_seed is None else recipe.batch_seed
    batches = Batches(Split(images.train_inputs, images.train_targets), recipe.batch_size, batch_seed)
    generator = torch.Generator().manual_seed(recipe.seed + 7919)
    model.train()
    cuts = 0
    noise: Terms | None = None
    for step in range(recipe.steps):
        inputs, labels = next(batches)
        target = functional.one_hot(labels, images.classes).to(inputs.dtype)
        if setting.transform is not None:
            inputs, target = setting.transform(model, inputs, target, generator)
        lr, weight_decay = _knobs(recipe, step)
        if recipe.level == "full" and recipe.noise_interval > 1:
            probe.level = "drift" if step % (recipe.interval * recipe.noise_interval) else "full"
        probe.arm(step)
        loss = soft_cross_entropy(model(inputs), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        cut = _clip(model, setting.clip)
        cuts += cut < 1.0
        _update(probe, optimizer, lr, weight_decay)
        terms = probe.collect(step)
        if terms is not None:
            terms = clipped(terms, cut)
            noise = terms if terms.level == recipe.level else noise
            if noise is not None and terms.level != recipe.level:
                terms = _with_noise_of(terms, noise)
        if on_step(step, float(loss.detach()), terms):
            break
    probe.close()
    return Run(model, optimizer, step + 1, cuts)


def _with_noise_of(terms: Terms, noise: Terms) -> Terms:
    return replace(terms, noise_LL=noise.noise_LL, noise_curvature_L=noise.noise_curvature_L, level=noise.level)


def _knobs(recipe: Recipe, step: int) -> tuple[float, float]:
    """Return learning rate and decoupled weight decay of step number ``step``."""
    lr = recipe.base_lr * (1.0 if recipe.schedule is None else recipe.schedule(step))
    shrink = recipe.regularizer.shrink if recipe.shrink_schedule is None else recipe.shrink_schedule(step)
    return lr, shrink / lr if lr > 0 else 0.0


def _update(probe: Probe, optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    probe.before_update()
    for group in optimizer.param_groups:
        group["lr"] = lr
    if weight_decay:
        with torch.no_grad():
            for layer in probe.layers:
                layer.weight.mul_(1.0 - lr * weight_decay)
    optimizer.step()
    probe.after_update(dict.fromkeys(range(len(optimizer.param_groups)), lr), {0: weight_decay})


def _clip(model: nn.Module, limit: float | None) -> float:
    """Clip the whole gradient's norm; return the factor that was applied, in (0, 1]."""
    if limit is None:
        return 1.0
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), limit))
    return min(1.0, limit / (norm + 1e-6))


def steps_for(images: Images, digits_steps: int) -> int:
    """Return the length of a run: ``digits_steps`` on the digits, else 100 epochs of batches of 128."""
    return digits_steps if images.name == "digits" else 100 * (len(images.train_targets) // 128)


def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy in eval mode; the model's mode is left as it was."""
    training = model.training
    model.eval()
    with torch.no_grad():
        output = torch.cat([model(part) for part in inputs.split(1024)])
        loss = float(functional.cross_entropy(output, targets))
        hits = float((output.argmax(1) == targets).float().mean())
    model.train(training)
    return loss, hits
