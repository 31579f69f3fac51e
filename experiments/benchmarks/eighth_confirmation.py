"""A former confirmation list, the eighth, whose numbers were drawn: it has joined the design list.

The headers of its two files still call it the confirmation list: they are part of its tasks' fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lipadvisor.experiments.benchmarks import eighth_networks as net
from lipadvisor.experiments.benchmarks import eighth_sources as data
from lipadvisor.experiments.benchmarks.draw import Draw, under_muon
from lipadvisor.experiments.benchmarks.networks import perceptron
from lipadvisor.experiments.benchmarks.task import LossKind, Task
from lipadvisor.experiments.workloads import Data

__all__ = ["EIGHTH"]

_SEED = 21_112_238  # of all draws
_MATRICES_ONLY = ("autoencoder", "deep_plain", "mixer", "patches", "teacher")  # what Muon can train without biases
_MUON = under_muon(_SEED, _MATRICES_ONLY, 3)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Softsign, nn.Tanh, nn.SiLU, nn.GELU)


def _deep_plain() -> Task:
    draw = Draw(_SEED, "deep_plain")
    optimizer, bias = draw.matrices_only("deep_plain" in _MUON)
    sizes = (64, *[draw.width(28, 52)] * draw.of((5, 6, 7, 8)), 10)
    activation = draw.of(_ACTIVATIONS)
    return Task("deep_pieces", f"plain {activation.__name__} MLP, {len(sizes) - 1} layers", optimizer,
                draw.steps(300, 600), draw.batch(), "cross_entropy",
                partial(perceptron, *sizes, activation=activation, bias=bias),
                partial(data.pieces, True))  # fmt: skip


def _batchnorm() -> Task:
    draw = Draw(_SEED, "batchnorm")
    return Task("gated_balls", "BatchNorm ResNet, gated", draw.optimizer(), draw.steps(120, 200),
                draw.of((24, 32, 48)), "cross_entropy",
                partial(net.gated_resnet, draw.of((8, 10, 12)), draw.of((1, 2)), 7), data.lit_balls)  # fmt: skip


def _pre_ln() -> Task:
    draw = Draw(_SEED, "pre_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("linear_attention", f"pre-LN character Transformer, {depth} blocks, linear attention", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.LinearAttentionTransformer, data.RUNES, length, heads, head_width, depth),
                partial(data.arithmetic, length))  # fmt: skip


def _post_ln() -> Task:
    draw = Draw(_SEED, "post_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("learnt_distances", f"post-LN character Transformer, {depth} blocks, learnt distances", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.RelativeTransformer, data.RUNES, length, heads, head_width, depth, draw.of((2, 3, 4))),
                partial(data.arithmetic, length))  # fmt: skip


def _highway() -> Task:
    draw = Draw(_SEED, "highway")
    length = draw.of((10, 12, 14))
    return Task("recurrent_highway", "recurrent character model, two gated steps a character", "adamw",
                draw.steps(250, 400), draw.of((8, 12, 16)), "cross_entropy",
                partial(net.RecurrentHighway, data.RUNES, draw.width(16, 24), draw.width(24, 40)),
                partial(data.paths, length))  # fmt: skip


def _paced() -> Task:
    draw = Draw(_SEED, "paced")
    length = draw.of((12, 14, 18))
    return Task("paced_recurrence", "recurrent character model, tanh at many paces", "adamw", draw.steps(250, 400),
                draw.of((8, 12, 16)), "cross_entropy",
                partial(net.PacedRecurrence, data.RUNES, draw.width(16, 24), draw.width(24, 40)),
                partial(data.paths, length))  # fmt: skip


def _mixer() -> Task:
    draw = Draw(_SEED, "mixer")
    optimizer, bias = draw.matrices_only("mixer" in _MUON)
    return Task("cosine_mixer", "mixer by cosines on stretched digits", optimizer, draw.steps(150, 250),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.CosineMixer, draw.width(12, 24), draw.of((1, 2, 3)), 10, bias),
                data.stretched_digits)  # fmt: skip


def _groupnorm() -> Task:
    draw = Draw(_SEED, "groupnorm")
    return Task("bowl_pieces", "GroupNorm ConvNet, down and up again", draw.optimizer(), draw.steps(120, 200),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.groupnorm_bowl, draw.of((1, 2, 4)), draw.of((2, 3)), draw.of((2, 3))),
                data.pieces)  # fmt: skip


def _teacher() -> Task:
    draw = Draw(_SEED, "teacher")
    optimizer, bias = draw.matrices_only("teacher" in _MUON)
    inputs, width, activation = draw.of((8, 12, 16)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    noise = draw.of((0.1, 0.2, 0.3))
    return Task("bumps", f"teacher of hills and hollows, noise {noise:g}", optimizer, draw.steps(400, 900),
                draw.batch(), "mse", partial(perceptron, inputs, width, width, 1, activation=activation, bias=bias),
                partial(data.bumps_teacher, inputs, noise))  # fmt: skip


def _low_noise() -> Task:
    draw = Draw(_SEED, "low_noise")
    variables, width, activation = draw.of((2, 3, 4, 5)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    layers = draw.of((2, 3))
    return Task("swing", f"low-noise regression in {variables} variables", draw.optimizer(), draw.steps(700, 1200),
                draw.batch(), "mse", partial(perceptron, variables, *[width] * layers, 1, activation=activation),
                partial(data.swing, variables))  # fmt: skip


def _autoencoder() -> Task:
    draw = Draw(_SEED, "autoencoder")
    optimizer, bias = draw.matrices_only("autoencoder" in _MUON)
    width, code, activation = draw.width(28, 48), draw.of((6, 8, 10, 12)), draw.of(_ACTIVATIONS)
    return Task("balls_autoencoder", f"autoencoder 64-{width}-{code}-{width}-64 of balls", optimizer,
                draw.steps(400, 700), draw.batch(), "mse",
                partial(perceptron, 64, width, code, width, 64, activation=activation, bias=bias),
                partial(data.lit_balls, True, 1200, True))  # fmt: skip


def _patches() -> Task:
    draw = Draw(_SEED, "patches")
    optimizer, bias = draw.matrices_only("patches" in _MUON)
    width, activation = draw.width(40, 72), draw.of(_ACTIVATIONS)
    return Task("sloped_patches", "even patches from sloped ones", optimizer, draw.steps(250, 450),
                draw.batch(), "mse", partial(perceptron, 16, width, width, 16, activation=activation, bias=bias),
                data.sloped_patches)  # fmt: skip


def _label_noise() -> Task:
    draw = Draw(_SEED, "label_noise")
    wrong, width, activation = draw.of((0.1, 0.2, 0.3, 0.4)), draw.width(48, 80), draw.of(_ACTIVATIONS)
    return Task("alike_digits", f"MLP, {wrong:.0%} of the labels those of the digit most alike", draw.optimizer(),
                draw.steps(250, 450), draw.batch(), "cross_entropy",
                partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.stretched_digits, True, wrong))  # fmt: skip


def _batch_4() -> Task:
    draw = Draw(_SEED, "batch_4")
    width, activation = draw.width(32, 64), draw.of(_ACTIVATIONS)
    return Task("balls_batch_4", "MLP that tells where light comes from, batches of four", draw.optimizer(),
                draw.steps(500, 900), 4, "cross_entropy",
                partial(perceptron, 64, width, width, 7, activation=activation),
                partial(data.lit_balls, True))  # fmt: skip


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
    return Task("tallies", "how many of four are positive, each row seen once", draw.optimizer(), steps, batch,
                "cross_entropy", partial(perceptron, inputs, width, width, 5, activation=draw.of(_ACTIVATIONS)),
                partial(data.tallies, inputs, steps * batch))  # fmt: skip


EIGHTH: tuple[Task, ...] = (
    _deep_plain(),
    _batchnorm(),
    _pre_ln(),
    _post_ln(),
    _highway(),
    _paced(),
    _mixer(),
    _groupnorm(),
    _teacher(),
    _low_noise(),
    _autoencoder(),
    _patches(),
    _label_noise(),
    _batch_4(),
    _table("grades_table", "three grades", "cross_entropy", 9, 3, data.grades_table),
    _table("sexes_table", "two classes, measured", "cross_entropy", 9, 2, data.sexes_table),
    _table("doses_table", "doses, far outliers", "mse", 10, 1, data.doses_table),
    _table("series_table", "the next of a series", "mse", 8, 1, data.series_table),
    _table("concavity_table", "regression, measured", "mse", 10, 1, data.concavity_table),
    _one_pass(),
)
