"""A former confirmation list, the seventh, whose numbers were drawn: it has joined the design list."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lipadvisor.experiments.benchmarks import seventh_networks as net
from lipadvisor.experiments.benchmarks import seventh_sources as data
from lipadvisor.experiments.benchmarks.draw import Draw, under_muon
from lipadvisor.experiments.benchmarks.networks import perceptron
from lipadvisor.experiments.benchmarks.task import LossKind, Task
from lipadvisor.experiments.workloads import Data

__all__ = ["SEVENTH"]

_SEED = 21_111_910  # of all draws
_MATRICES_ONLY = ("autoencoder", "deep_plain", "mixer", "patches", "teacher")  # what Muon can train without biases
_MUON = under_muon(_SEED, _MATRICES_ONLY, 3)
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Mish, nn.GELU)


def _deep_plain() -> Task:
    draw = Draw(_SEED, "deep_plain")
    optimizer, bias = draw.matrices_only("deep_plain" in _MUON)
    sizes = (64, *[draw.width(28, 52)] * draw.of((5, 6, 7, 8)), 10)
    activation = draw.of(_ACTIVATIONS)
    return Task("deep_rings", f"plain {activation.__name__} MLP, {len(sizes) - 1} layers", optimizer,
                draw.steps(300, 600), draw.batch(), "cross_entropy",
                partial(perceptron, *sizes, activation=activation, bias=bias),
                partial(data.rings, True))  # fmt: skip


def _batchnorm() -> Task:
    draw = Draw(_SEED, "batchnorm")
    return Task("excited_ellipses", "BatchNorm ResNet with excitation", draw.optimizer(), draw.steps(120, 200),
                draw.of((24, 32, 48)), "cross_entropy",
                partial(net.excited_resnet, draw.of((8, 10, 12)), draw.of((1, 2)), 6), data.ellipses)  # fmt: skip


def _pre_ln() -> Task:
    draw = Draw(_SEED, "pre_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("rotary", f"pre-LN character Transformer, {depth} blocks, turned queries and keys", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.RotaryTransformer, data.MARKS, heads, head_width, depth),
                partial(data.importers, length))  # fmt: skip


def _post_ln() -> Task:
    draw = Draw(_SEED, "post_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("cosines", f"post-LN character Transformer, {depth} blocks, attention by cosines", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.CosineTransformer, data.MARKS, length, heads, head_width, depth, draw.of((2, 3, 4))),
                partial(data.importers, length))  # fmt: skip


def _multiplicative() -> Task:
    draw = Draw(_SEED, "multiplicative")
    length = draw.of((10, 12, 14))
    return Task("multiplicative", "recurrent character model, tanh of products", "adamw",
                draw.steps(250, 400), draw.of((8, 12, 16)), "cross_entropy",
                partial(net.MultiplicativeRecurrence, data.MARKS, draw.width(16, 24), draw.width(24, 40)),
                partial(data.parsers, length))  # fmt: skip


def _linear() -> Task:
    draw = Draw(_SEED, "linear")
    length = draw.of((12, 14, 18))
    return Task("linear_recurrence", "recurrent character model, linear state", "adamw", draw.steps(250, 400),
                draw.of((8, 12, 16)), "cross_entropy",
                partial(net.LinearRecurrence, data.MARKS, draw.width(16, 24), draw.width(24, 40)),
                partial(data.parsers, length))  # fmt: skip


def _mixer() -> Task:
    draw = Draw(_SEED, "mixer")
    optimizer, bias = draw.matrices_only("mixer" in _MUON)
    return Task("pool_mixer", "mixer by local means on digits and ghosts", optimizer, draw.steps(150, 250),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.PoolMixer, draw.width(12, 24), draw.of((1, 2, 3)), 10, bias),
                data.ghosts)  # fmt: skip


def _groupnorm() -> Task:
    draw = Draw(_SEED, "groupnorm")
    return Task("branched_rings", "GroupNorm ConvNet, two ways side by side", draw.optimizer(), draw.steps(120, 200),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.groupnorm_branches, draw.of((1, 2, 4)), draw.of((2, 3)), draw.of((2, 3))),
                data.rings)  # fmt: skip


def _teacher() -> Task:
    draw = Draw(_SEED, "teacher")
    optimizer, bias = draw.matrices_only("teacher" in _MUON)
    inputs, width, activation = draw.of((8, 12, 16)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    noise = draw.of((0.1, 0.2, 0.3))
    return Task("lookup", f"teacher of attention, noise {noise:g}", optimizer, draw.steps(400, 900),
                draw.batch(), "mse", partial(perceptron, inputs, width, width, 1, activation=activation, bias=bias),
                partial(data.lookup_teacher, inputs, noise))  # fmt: skip


def _low_noise() -> Task:
    draw = Draw(_SEED, "low_noise")
    variables, width, activation = draw.of((2, 3, 4, 5)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    layers = draw.of((2, 3))
    return Task("poles", f"low-noise regression in {variables} variables", draw.optimizer(), draw.steps(700, 1200),
                draw.batch(), "mse", partial(perceptron, variables, *[width] * layers, 1, activation=activation),
                partial(data.poles, variables))  # fmt: skip


def _autoencoder() -> Task:
    draw = Draw(_SEED, "autoencoder")
    optimizer, bias = draw.matrices_only("autoencoder" in _MUON)
    width, code, activation = draw.width(28, 48), draw.of((6, 8, 10, 12)), draw.of(_ACTIVATIONS)
    return Task("ellipses_autoencoder", f"autoencoder 64-{width}-{code}-{width}-64 of ellipses", optimizer,
                draw.steps(400, 700), draw.batch(), "mse",
                partial(perceptron, 64, width, code, width, 64, activation=activation, bias=bias),
                partial(data.ellipses, True, 1200, True))  # fmt: skip


def _patches() -> Task:
    draw = Draw(_SEED, "patches")
    optimizer, bias = draw.matrices_only("patches" in _MUON)
    width, activation = draw.width(40, 72), draw.of(_ACTIVATIONS)
    return Task("salted_patches", "whole patches from salted ones", optimizer, draw.steps(250, 450),
                draw.batch(), "mse", partial(perceptron, 16, width, width, 16, activation=activation, bias=bias),
                data.salted_patches)  # fmt: skip


def _label_noise() -> Task:
    draw = Draw(_SEED, "label_noise")
    wrong, width, activation = draw.of((0.1, 0.2, 0.3, 0.4)), draw.width(48, 80), draw.of(_ACTIVATIONS)
    return Task("mistaken_ghosts", f"MLP, {wrong:.0%} of the labels those of the fainter digit", draw.optimizer(),
                draw.steps(250, 450), draw.batch(), "cross_entropy",
                partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.ghosts, True, wrong))  # fmt: skip


def _batch_4() -> Task:
    draw = Draw(_SEED, "batch_4")
    width, activation = draw.width(32, 64), draw.of(_ACTIVATIONS)
    return Task("ellipses_batch_4", "MLP that tells axes, batches of four", draw.optimizer(),
                draw.steps(500, 900), 4, "cross_entropy",
                partial(perceptron, 64, width, width, 6, activation=activation),
                partial(data.ellipses, True))  # fmt: skip


def _table(name: str, what: str, loss: LossKind, columns: int, outputs: int, load: Callable[[int], Data]) -> Task:
    """Return a small table: ``load`` takes the number of training rows, which is drawn as all else is."""
    draw = Draw(_SEED, name)
    rows, width = draw.of((100, 140, 180, 220)), draw.width(24, 48)
    return Task(name, f"small table, {rows} rows, {what}", draw.optimizer(), draw.steps(150, 300),
                draw.of((10, 16, 24, 32)), loss,
                partial(perceptron, columns, width, width, outputs, activation=draw.of(_ACTIVATIONS)),
                partial(load, rows), small_table=True)  # fmt: skip


def _one_pass() -> Task:
    draw = Draw(_SEED, "one_pass")
    inputs, width, steps, batch = draw.of((6, 8, 10)), draw.width(32, 64), draw.steps(300, 600), draw.batch()
    return Task("nearest", "nearest of five centres, each row seen once", draw.optimizer(), steps, batch,
                "cross_entropy", partial(perceptron, inputs, width, width, 5, activation=draw.of(_ACTIVATIONS)),
                partial(data.nearest, inputs, steps * batch))  # fmt: skip


SEVENTH: tuple[Task, ...] = (
    _deep_plain(),
    _batchnorm(),
    _pre_ln(),
    _post_ln(),
    _multiplicative(),
    _linear(),
    _mixer(),
    _groupnorm(),
    _teacher(),
    _low_noise(),
    _autoencoder(),
    _patches(),
    _label_noise(),
    _batch_4(),
    _table("preferences_table", "three classes", "cross_entropy", 9, 3, data.preferences_table),
    _table("tumours_table", "two classes, measured", "cross_entropy", 10, 2, data.tumours_table),
    _table("waiting_table", "waiting times", "mse", 10, 1, data.waiting_table),
    _table("regimes_table", "two regimes", "mse", 8, 1, data.regimes_table),
    _table("pressure_table", "regression, measured", "mse", 9, 1, data.pressure_table),
    _one_pass(),
)
