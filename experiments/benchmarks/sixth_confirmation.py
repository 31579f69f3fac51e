"""A former confirmation list, the sixth, whose numbers were drawn: it has joined the design list."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lipadvisor.experiments.benchmarks import sixth_networks as net
from lipadvisor.experiments.benchmarks import sixth_sources as data
from lipadvisor.experiments.benchmarks.draw import Draw, under_muon
from lipadvisor.experiments.benchmarks.networks import perceptron
from lipadvisor.experiments.benchmarks.task import LossKind, Task
from lipadvisor.experiments.workloads import Data

__all__ = ["SIXTH"]

_SEED = 21_117_655  # of all draws
_MATRICES_ONLY = ("autoencoder", "deep_plain", "mixer", "patches", "teacher")  # what Muon can train without biases
_MUON = under_muon(_SEED, _MATRICES_ONLY, 3)
_ACTIVATIONS = (nn.ReLU, nn.SELU, nn.Hardswish, nn.Tanh, nn.SiLU, nn.GELU)


def _deep_plain() -> Task:
    draw = Draw(_SEED, "deep_plain")
    optimizer, bias = draw.matrices_only("deep_plain" in _MUON)
    sizes = (64, *[draw.width(28, 52)] * draw.of((5, 6, 7, 8)), 10)
    activation = draw.of(_ACTIVATIONS)
    return Task("deep_segments", f"plain {activation.__name__} MLP, {len(sizes) - 1} layers", optimizer,
                draw.steps(300, 600), draw.batch(), "cross_entropy",
                partial(perceptron, *sizes, activation=activation, bias=bias),
                partial(data.segments, True))  # fmt: skip


def _batchnorm() -> Task:
    draw = Draw(_SEED, "batchnorm")
    return Task("bottleneck_bearings", "BatchNorm ResNet with bottlenecks", draw.optimizer(), draw.steps(120, 200),
                draw.of((24, 32, 48)), "cross_entropy",
                partial(net.bottleneck_resnet, draw.of((8, 10, 12)), draw.of((1, 2)), 8), data.bearings)  # fmt: skip


def _pre_ln() -> Task:
    draw = Draw(_SEED, "pre_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("multi_query", f"pre-LN character Transformer, {depth} blocks, shared keys and values", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.MultiQueryTransformer, data.GLYPHS, length, heads, head_width, depth),
                partial(data.debuggers, length))  # fmt: skip


def _post_ln() -> Task:
    draw = Draw(_SEED, "post_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("distances", f"post-LN character Transformer, {depth} blocks, places by distance", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.DistanceTransformer, data.GLYPHS, heads, head_width, depth, draw.of((2, 3, 4))),
                partial(data.debuggers, length))  # fmt: skip


def _quasi() -> Task:
    draw = Draw(_SEED, "quasi")
    length = draw.of((10, 12, 14))
    return Task("quasi_recurrent", "recurrent character model, gates without the state", "adamw",
                draw.steps(250, 400), draw.of((8, 12, 16)), "cross_entropy",
                partial(net.QuasiRecurrent, data.GLYPHS, draw.width(16, 24), draw.width(24, 40)),
                partial(data.services, length))  # fmt: skip


def _normed() -> Task:
    draw = Draw(_SEED, "normed")
    length = draw.of((12, 14, 18))
    return Task("normed_recurrence", "recurrent character model, normalised tanh", "adamw", draw.steps(250, 400),
                draw.of((8, 12, 16)), "cross_entropy",
                partial(net.NormedRecurrence, data.GLYPHS, draw.width(16, 24), draw.width(24, 40)),
                partial(data.services, length))  # fmt: skip


def _mixer() -> Task:
    draw = Draw(_SEED, "mixer")
    optimizer, bias = draw.matrices_only("mixer" in _MUON)
    return Task("shift_mixer", "mixer by shifts on turned digits", optimizer, draw.steps(150, 250),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.ShiftMixer, draw.width(12, 24), draw.of((1, 2, 3)), 10, bias),
                data.turned_digits)  # fmt: skip


def _groupnorm() -> Task:
    draw = Draw(_SEED, "groupnorm")
    return Task("dense_segments", "GroupNorm ConvNet, densely connected", draw.optimizer(), draw.steps(120, 200),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.groupnorm_densenet, draw.of((1, 2, 4)), draw.of((2, 3)), draw.of((2, 3))),
                data.segments)  # fmt: skip


def _teacher() -> Task:
    draw = Draw(_SEED, "teacher")
    optimizer, bias = draw.matrices_only("teacher" in _MUON)
    inputs, width, activation = draw.of((8, 12, 16)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    noise = draw.of((0.1, 0.2, 0.3))
    return Task("soft_tree", f"teacher of soft decisions, noise {noise:g}", optimizer, draw.steps(400, 900),
                draw.batch(), "mse", partial(perceptron, inputs, width, width, 1, activation=activation, bias=bias),
                partial(data.tree_teacher, inputs, noise))  # fmt: skip


def _low_noise() -> Task:
    draw = Draw(_SEED, "low_noise")
    variables, width, activation = draw.of((2, 3, 4, 5)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    layers = draw.of((2, 3))
    return Task("folds", f"low-noise regression in {variables} variables", draw.optimizer(), draw.steps(700, 1200),
                draw.batch(), "mse", partial(perceptron, variables, *[width] * layers, 1, activation=activation),
                partial(data.folds, variables))  # fmt: skip


def _autoencoder() -> Task:
    draw = Draw(_SEED, "autoencoder")
    optimizer, bias = draw.matrices_only("autoencoder" in _MUON)
    width, code, activation = draw.width(28, 48), draw.of((6, 8, 10, 12)), draw.of(_ACTIVATIONS)
    return Task("bearings_autoencoder", f"autoencoder 64-{width}-{code}-{width}-64 of two spots", optimizer,
                draw.steps(400, 700), draw.batch(), "mse",
                partial(perceptron, 64, width, code, width, 64, activation=activation, bias=bias),
                partial(data.bearings, True, 1200, True))  # fmt: skip


def _patches() -> Task:
    draw = Draw(_SEED, "patches")
    optimizer, bias = draw.matrices_only("patches" in _MUON)
    width, activation = draw.width(40, 72), draw.of(_ACTIVATIONS)
    return Task("coarse_patches", "sharp patches from coarse ones", optimizer, draw.steps(250, 450),
                draw.batch(), "mse", partial(perceptron, 16, width, width, 16, activation=activation, bias=bias),
                data.coarse_patches)  # fmt: skip


def _label_noise() -> Task:
    draw = Draw(_SEED, "label_noise")
    wrong, width, activation = draw.of((0.1, 0.2, 0.3, 0.4)), draw.width(48, 80), draw.of(_ACTIVATIONS)
    return Task("borrowed_labels", f"MLP, {wrong:.0%} of the labels of another row", draw.optimizer(),
                draw.steps(250, 450), draw.batch(), "cross_entropy",
                partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.turned_digits, True, wrong))  # fmt: skip


def _batch_4() -> Task:
    draw = Draw(_SEED, "batch_4")
    width, activation = draw.width(32, 64), draw.of(_ACTIVATIONS)
    return Task("bearings_batch_4", "MLP that tells directions, batches of four", draw.optimizer(),
                draw.steps(500, 900), 4, "cross_entropy",
                partial(perceptron, 64, width, width, 8, activation=activation),
                partial(data.bearings, True))  # fmt: skip


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
    return Task("orders", "orders of three values, each row seen once", draw.optimizer(), steps, batch,
                "cross_entropy", partial(perceptron, inputs, width, width, 6, activation=draw.of(_ACTIVATIONS)),
                partial(data.orders, inputs, steps * batch))  # fmt: skip


SIXTH: tuple[Task, ...] = (
    _deep_plain(),
    _batchnorm(),
    _pre_ln(),
    _post_ln(),
    _quasi(),
    _normed(),
    _mixer(),
    _groupnorm(),
    _teacher(),
    _low_noise(),
    _autoencoder(),
    _patches(),
    _label_noise(),
    _batch_4(),
    _table("checks_table", "two classes", "cross_entropy", 10, 2, data.checks_table),
    _table("clusters_table", "five classes", "cross_entropy", 10, 5, data.clusters_table),
    _table("counts_table", "counts", "mse", 9, 1, data.counts_table),
    _table("serum_table", "regression, measured", "mse", 9, 1, data.serum_table),
    _table("cells_table", "regression, measured", "mse", 10, 1, data.cells_table),
    _one_pass(),
)
