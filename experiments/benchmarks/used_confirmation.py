"""A former confirmation list, the fifth, whose numbers were drawn: it has joined the design list."""

from __future__ import annotations

from functools import partial

from torch import nn

from lipadvisor.experiments.benchmarks import other_networks as net
from lipadvisor.experiments.benchmarks import other_sources as data
from lipadvisor.experiments.benchmarks.draw import Draw, under_muon
from lipadvisor.experiments.benchmarks.networks import perceptron
from lipadvisor.experiments.benchmarks.task import Task

__all__ = ["USED"]

_SEED = 77_260_611  # of all draws
_MATRICES_ONLY = ("autoencoder", "deep_plain", "mixer", "patches", "teacher")  # what Muon can train without biases
_MUON = under_muon(_SEED, _MATRICES_ONLY, 3)
_ACTIVATIONS = (nn.ReLU, nn.Mish, nn.CELU, nn.Softsign, nn.GELU)


def _deep_plain() -> Task:
    draw = Draw(_SEED, "deep_plain")
    optimizer, bias = draw.matrices_only("deep_plain" in _MUON)
    sizes = (64, *[draw.width(28, 52)] * draw.of((5, 6, 7, 8)), 10)
    activation = draw.of(_ACTIVATIONS)
    return Task("deep_glyphs", f"plain {activation.__name__} MLP, {len(sizes) - 1} layers", optimizer,
                draw.steps(300, 600), draw.batch(), "cross_entropy",
                partial(perceptron, *sizes, activation=activation, bias=bias),
                partial(data.glyphs, True))  # fmt: skip


def _batchnorm() -> Task:
    draw = Draw(_SEED, "batchnorm")
    return Task("projected_spots", "BatchNorm ResNet that counts spots", draw.optimizer(), draw.steps(120, 200),
                draw.of((24, 32, 48)), "cross_entropy",
                partial(net.projected_resnet, draw.of((6, 8, 10)), draw.of((1, 2)), 6), data.spots)  # fmt: skip


def _pre_ln() -> Task:
    draw = Draw(_SEED, "pre_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("parallel_packages", f"pre-LN character Transformer, {depth} parallel blocks", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.ParallelTransformer, data.CHARACTERS, length, heads, head_width, depth),
                partial(data.packages, length))  # fmt: skip


def _post_ln() -> Task:
    draw = Draw(_SEED, "post_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("sine_packages", f"post-LN character Transformer, {depth} blocks, sines as positions", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.SineTransformer, data.CHARACTERS, heads, head_width, depth, draw.of((2, 3, 4))),
                partial(data.packages, length))  # fmt: skip


def _stacked() -> Task:
    draw = Draw(_SEED, "stacked")
    length = draw.of((10, 12, 14))
    return Task("stacked_gru", "recurrent character model, two GRU layers", "adamw", draw.steps(250, 400),
                draw.of((8, 12, 16)), "cross_entropy",
                partial(net.StackedGru, data.CHARACTERS, draw.width(16, 24), draw.width(20, 32)),
                partial(data.tools, length))  # fmt: skip


def _coupled() -> Task:
    draw = Draw(_SEED, "coupled")
    length = draw.of((12, 14, 18))
    return Task("coupled_lstm", "recurrent character model, LSTM with coupled gates", "adamw", draw.steps(250, 400),
                draw.of((8, 12, 16)), "cross_entropy",
                partial(net.CoupledModel, data.CHARACTERS, draw.width(16, 24), draw.width(24, 40)),
                partial(data.tools, length))  # fmt: skip


def _mixer() -> Task:
    draw = Draw(_SEED, "mixer")
    optimizer, bias = draw.matrices_only("mixer" in _MUON)
    return Task("gated_mixer", "mixer with gates on covered digits", optimizer, draw.steps(150, 250),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.GatedMixer, draw.width(12, 24), draw.of((1, 2, 3)), 10, bias),
                data.occluded_digits)  # fmt: skip


def _groupnorm() -> Task:
    draw = Draw(_SEED, "groupnorm")
    return Task("groupnorm_glyphs", "GroupNorm residual ConvNet", draw.optimizer(), draw.steps(120, 200),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.groupnorm_resnet, draw.of((1, 2, 4)), draw.of((3, 4)), draw.of((1, 2))),
                data.glyphs)  # fmt: skip


def _teacher() -> Task:
    draw = Draw(_SEED, "teacher")
    optimizer, bias = draw.matrices_only("teacher" in _MUON)
    inputs, width, activation = draw.of((8, 12, 16)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    noise = draw.of((0.1, 0.2, 0.3))
    return Task("kinks", f"teacher of maxima, noise {noise:g}", optimizer, draw.steps(400, 900), draw.batch(),
                "mse", partial(perceptron, inputs, width, width, 1, activation=activation, bias=bias),
                partial(data.kinks, inputs, noise))  # fmt: skip


def _low_noise() -> Task:
    draw = Draw(_SEED, "low_noise")
    variables, width, activation = draw.of((2, 3, 4, 5)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    layers = draw.of((2, 3))
    return Task("chirp", f"low-noise regression in {variables} variables", draw.optimizer(), draw.steps(700, 1200),
                draw.batch(), "mse", partial(perceptron, variables, *[width] * layers, 1, activation=activation),
                partial(data.chirp, variables))  # fmt: skip


def _autoencoder() -> Task:
    draw = Draw(_SEED, "autoencoder")
    optimizer, bias = draw.matrices_only("autoencoder" in _MUON)
    width, code, activation = draw.width(28, 48), draw.of((6, 8, 10, 12)), draw.of(_ACTIVATIONS)
    return Task("spots_autoencoder", f"autoencoder 64-{width}-{code}-{width}-64 of spots", optimizer,
                draw.steps(400, 700), draw.batch(), "mse",
                partial(perceptron, 64, width, code, width, 64, activation=activation, bias=bias),
                partial(data.spots, True, 1200, True))  # fmt: skip


def _patches() -> Task:
    draw = Draw(_SEED, "patches")
    optimizer, bias = draw.matrices_only("patches" in _MUON)
    width, activation = draw.width(40, 72), draw.of(_ACTIVATIONS)
    return Task("binary_patches", "grey patches from black and white ones", optimizer, draw.steps(250, 450),
                draw.batch(), "mse", partial(perceptron, 16, width, width, 16, activation=activation, bias=bias),
                data.binary_patches)  # fmt: skip


def _label_noise() -> Task:
    draw = Draw(_SEED, "label_noise")
    wrong, width, activation = draw.of((0.1, 0.2, 0.3)), draw.width(48, 80), draw.of(_ACTIVATIONS)
    return Task("confused_digits", f"MLP, {wrong:.0%} of the labels confused", draw.optimizer(), draw.steps(250, 450),
                draw.batch(), "cross_entropy", partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.occluded_digits, True, wrong))  # fmt: skip


def _batch_4() -> Task:
    draw = Draw(_SEED, "batch_4")
    width, activation = draw.width(32, 64), draw.of(_ACTIVATIONS)
    return Task("spots_batch_4", "MLP that counts spots, batches of four", draw.optimizer(), draw.steps(500, 900), 4,
                "cross_entropy", partial(perceptron, 64, width, width, 6, activation=activation),
                partial(data.spots, True))  # fmt: skip


def _class_table() -> Task:
    draw = Draw(_SEED, "class_table")
    rows, width = draw.of((140, 180, 220, 260)), draw.width(24, 48)
    return Task("rule_table", f"small table, {rows} rows, three classes", draw.optimizer(), draw.steps(150, 300),
                draw.of((10, 16, 24, 32)), "cross_entropy",
                partial(perceptron, 12, width, width, 3, activation=draw.of(_ACTIVATIONS)),
                partial(data.rule_table, rows), small_table=True)  # fmt: skip


def _number_table() -> Task:
    draw = Draw(_SEED, "number_table")
    rows, width = draw.of((100, 140, 180, 220)), draw.width(24, 48)
    return Task("impedance_table", f"small table, {rows} rows, regression", draw.optimizer(), draw.steps(150, 300),
                draw.of((10, 16, 24, 32)), "mse",
                partial(perceptron, 12, width, width, 1, activation=draw.of(_ACTIVATIONS)),
                partial(data.impedance_table, rows), small_table=True)  # fmt: skip


def _alcohol() -> Task:
    draw = Draw(_SEED, "alcohol")
    width = draw.width(24, 48)
    return Task("alcohol_table", "small table, 90 wines, regression", draw.optimizer(), draw.steps(150, 300),
                draw.of((10, 16, 24, 32)), "mse",
                partial(perceptron, 12, width, width, 1, activation=draw.of(_ACTIVATIONS)),
                data.alcohol_table, small_table=True)  # fmt: skip


def _one_pass() -> Task:
    draw = Draw(_SEED, "one_pass")
    inputs, width, steps, batch = draw.of((6, 8, 10)), draw.width(32, 64), draw.steps(300, 600), draw.batch()
    return Task("votes", "votes of four parties, each row seen once", draw.optimizer(), steps, batch, "cross_entropy",
                partial(perceptron, inputs, width, width, 4, activation=draw.of(_ACTIVATIONS)),
                partial(data.votes, inputs, steps * batch))  # fmt: skip


USED: tuple[Task, ...] = (
    _deep_plain(),
    _batchnorm(),
    _pre_ln(),
    _post_ln(),
    _stacked(),
    _coupled(),
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
    _alcohol(),
    _one_pass(),
)
