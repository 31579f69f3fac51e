"""The confirmation list: run once, after constants and source were frozen.

One task of each family, written before any policy was run on any of them. Who writes a list knows what has lost before,
so sizes, batches, lengths of runs, noise and optimizers are drawn: :class:`_Draw` names the ranges, a seeded generator
picks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from torch import nn

from lipadvisor.experiments.benchmarks import fresh_networks as net
from lipadvisor.experiments.benchmarks import fresh_sources as data
from lipadvisor.experiments.benchmarks.networks import Mixer, perceptron
from lipadvisor.experiments.benchmarks.task import OptimizerKind, Task

__all__ = ["CONFIRMATION"]

_SEED = 20_261_121  # of all draws
_MATRICES_ONLY = ("autoencoder", "inpainting", "mixer", "teacher")  # what Muon can train without biases
_MUON_TASKS = 2
T = TypeVar("T")


class _Draw:
    """The numbers of one task: the same in every process, whatever else is drawn."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(f"{_SEED} {name}")

    def of(self, options: Sequence[T]) -> T:
        """Return one of ``options``."""
        return self._random.choice(options)

    def batch(self) -> int:
        """Return a batch size."""
        return self.of((8, 12, 16, 24, 32, 48, 64))

    def steps(self, low: int, high: int) -> int:
        """Return the length of a run, a multiple of ten."""
        return self.of(range(low, high + 1, 10))

    def width(self, low: int, high: int) -> int:
        """Return a multiple of four."""
        return self.of(range(low, high + 1, 4))

    def optimizer(self) -> OptimizerKind:
        """Return AdamW twice as often as SGD."""
        return self.of(("adamw", "adamw", "sgd"))

    def activation(self) -> type[nn.Module]:
        """Return a kind of activation."""
        return self.of((nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.SiLU, nn.GELU))


_MUON = frozenset(random.Random(f"{_SEED} muon").sample(_MATRICES_ONLY, _MUON_TASKS))


def _matrices_only(name: str, draw: _Draw) -> tuple[OptimizerKind, bool]:
    """Return the optimizer and whether there are biases."""
    drawn = draw.optimizer()
    return ("muon", False) if name in _MUON else (drawn, True)


def _deep_plain() -> Task:
    draw = _Draw("deep_plain 2")  # of the first draw, SiLU under SGD, none of 64 trials learnt more than to guess
    sizes = (64, *[draw.width(28, 52)] * draw.of((5, 6, 7, 8)), 10)
    activation = draw.activation()
    return Task("drawn_deep", f"plain {activation.__name__} MLP, {len(sizes) - 1} layers", draw.optimizer(),
                draw.steps(300, 600), draw.batch(), "cross_entropy",
                partial(perceptron, *sizes, activation=activation), data.shifted_digits)  # fmt: skip


def _batchnorm() -> Task:
    draw = _Draw("batchnorm")
    return Task("preactivation", "BatchNorm ResNet with its norms before the convolutions", draw.optimizer(),
                draw.steps(120, 200), draw.of((24, 32, 48)), "cross_entropy",
                partial(net.preactivation_resnet, draw.width(8, 12), draw.of((1, 2))), data.gratings)  # fmt: skip


def _transformer(pre: bool) -> Task:
    title = "pre_ln" if pre else "post_ln"
    draw = _Draw(title)
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 4)), draw.of((8, 12)), draw.of((2, 3))
    return Task(f"{title}_library", f"{'pre' if pre else 'post'}-LN character Transformer, {depth} blocks", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.transformer, data.SIGNS, length, heads, head_width, depth, pre),
                partial(data.library, length))  # fmt: skip


def _recurrent() -> Task:
    draw = _Draw("recurrent")
    length = draw.of((12, 14, 18))
    return Task("minimal_gated", "recurrent character model with one gate", "adamw", draw.steps(250, 400),
                draw.of((8, 12, 16)), "cross_entropy",
                partial(net.MinimalGatedModel, data.SIGNS, draw.width(16, 24), draw.width(28, 44)),
                partial(data.library, length))  # fmt: skip


def _mixer() -> Task:
    draw = _Draw("mixer")
    optimizer, bias = _matrices_only("mixer", draw)
    return Task("mixer_gratings", "MLP-mixer on gratings", optimizer, draw.steps(150, 250), draw.of((12, 16, 24, 32)),
                "cross_entropy", partial(Mixer, draw.width(8, 16), draw.of((1, 2, 3)), 10, bias),
                data.gratings)  # fmt: skip


def _groupnorm() -> Task:
    draw = _Draw("groupnorm")
    return Task("groupnorm_shifted", "GroupNorm ConvNet on moved digits", draw.optimizer(), draw.steps(120, 200),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.groupnorm_stack, draw.of((2, 3, 4)), draw.of((2, 3)), draw.of((3, 4))),
                partial(data.shifted_digits, False))  # fmt: skip


def _teacher() -> Task:
    draw = _Draw("teacher")
    optimizer, bias = _matrices_only("teacher", draw)
    inputs, width, activation = draw.of((8, 12, 16)), draw.width(32, 64), draw.activation()
    noise = draw.of((0.1, 0.2, 0.3))
    return Task("sine_teacher", f"two sums of sines, noise {noise:g}", optimizer, draw.steps(400, 900), draw.batch(),
                "mse", partial(perceptron, inputs, width, width, 2, activation=activation, bias=bias),
                partial(data.sine_teacher, inputs, noise))  # fmt: skip


def _low_noise() -> Task:
    draw = _Draw("low_noise")
    variables, width, activation = draw.of((2, 3, 4, 5)), draw.width(32, 64), draw.activation()
    layers = draw.of((2, 3))
    return Task("resonance", f"low-noise regression in {variables} variables", draw.optimizer(), draw.steps(700, 1200),
                draw.batch(), "mse", partial(perceptron, variables, *[width] * layers, 1, activation=activation),
                partial(data.resonance, variables))  # fmt: skip


def _autoencoder() -> Task:
    draw = _Draw("autoencoder")
    optimizer, bias = _matrices_only("autoencoder", draw)
    width, code, activation = draw.width(28, 48), draw.of((5, 6, 10, 12)), draw.activation()
    return Task("shifted_autoencoder", f"autoencoder 64-{width}-{code}-{width}-64 of moved digits", optimizer,
                draw.steps(400, 700), draw.batch(), "mse",
                partial(perceptron, 64, width, code, width, 64, activation=activation, bias=bias),
                partial(data.shifted_digits, True, 0.0, True))  # fmt: skip


def _patches() -> Task:
    draw = _Draw("patches")
    optimizer, bias = _matrices_only("inpainting", draw)
    width, activation = draw.width(40, 72), draw.activation()
    return Task("inpainting", "patches with a hole", optimizer, draw.steps(250, 450), draw.batch(), "mse",
                partial(perceptron, 16, width, width, 16, activation=activation, bias=bias),
                data.inpainting)  # fmt: skip


def _label_noise() -> Task:
    draw = _Draw("label_noise")
    wrong, width, activation = draw.of((0.1, 0.2, 0.3, 0.4)), draw.width(48, 80), draw.activation()
    return Task("wrong_shifted", f"MLP, {wrong:.0%} of the labels wrong", draw.optimizer(), draw.steps(250, 450),
                draw.batch(), "cross_entropy", partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.shifted_digits, True, wrong))  # fmt: skip


def _batch_4() -> Task:
    draw = _Draw("batch_4")
    width, activation = draw.width(32, 64), draw.activation()
    return Task("gratings_batch_4", "MLP on gratings, batches of four", draw.optimizer(), draw.steps(500, 900), 4,
                "cross_entropy", partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.gratings, True))  # fmt: skip


def _class_table() -> Task:
    draw = _Draw("class_table")
    rows, width = draw.of((140, 180, 220, 260)), draw.width(24, 48)
    return Task("hastie_table", f"small table, {rows} rows, two classes", draw.optimizer(), draw.steps(150, 300),
                draw.of((10, 16, 24, 32)), "cross_entropy",
                partial(perceptron, 10, width, width, 2, activation=draw.activation()),
                partial(data.hastie_table, rows), small_table=True)  # fmt: skip


def _number_table() -> Task:
    draw = _Draw("number_table")
    rows, width = draw.of((100, 140, 180, 220)), draw.width(24, 48)
    return Task("phase_table", f"small table, {rows} rows, regression", draw.optimizer(), draw.steps(150, 300),
                draw.of((10, 16, 24, 32)), "mse",
                partial(perceptron, 10, width, width, 1, activation=draw.activation()),
                partial(data.phase_table, rows), small_table=True)  # fmt: skip


def _one_pass() -> Task:
    draw = _Draw("one_pass")
    inputs, width, steps, batch = draw.of((6, 8, 10)), draw.width(32, 64), draw.steps(300, 600), draw.batch()
    return Task("one_pass", "quadratic forms, each row seen once", draw.optimizer(), steps, batch, "cross_entropy",
                partial(perceptron, inputs, width, width, 3, activation=draw.activation()),
                partial(data.stream, inputs, steps * batch))  # fmt: skip


def _plain_convnet() -> Task:
    draw = _Draw("plain_convnet")
    return Task("wave_convnet", "plain ConvNet on gratings", draw.optimizer(), draw.steps(150, 250),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.wave_convnet, draw.width(8, 12), draw.of((2, 3, 4))), data.gratings)  # fmt: skip


def _plane() -> Task:
    draw = _Draw("plane")
    arms, width = draw.of((3, 4, 5)), draw.width(20, 40)
    return Task("pinwheel", f"{arms} arms of a pinwheel in the plane", draw.optimizer(), draw.steps(300, 700),
                draw.batch(), "cross_entropy",
                partial(perceptron, 2, width, width, arms, activation=draw.activation()),
                partial(data.pinwheel, arms))  # fmt: skip


CONFIRMATION: tuple[Task, ...] = (
    _deep_plain(),
    _batchnorm(),
    _transformer(True),
    _transformer(False),
    _recurrent(),
    _mixer(),
    _groupnorm(),
    _teacher(),
    _low_noise(),
    _autoencoder(),
    _patches(),
    _label_noise(),
    _batch_4(),
    _class_table(),
    _number_table(),
    _one_pass(),
    _plain_convnet(),
    _plane(),
)
