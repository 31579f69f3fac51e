"""A former confirmation list, the fourth, whose numbers were drawn: it has joined the design list."""

from __future__ import annotations

from functools import partial

from lipadvisor.experiments.benchmarks import fresh_networks as net
from lipadvisor.experiments.benchmarks import fresh_sources as data
from lipadvisor.experiments.benchmarks.draw import Draw, under_muon
from lipadvisor.experiments.benchmarks.networks import Mixer, perceptron
from lipadvisor.experiments.benchmarks.task import Task

__all__ = ["DRAWN"]

_SEED = 20_261_121  # of all draws
_MATRICES_ONLY = ("autoencoder", "inpainting", "mixer", "teacher")  # what Muon can train without biases
_MUON = under_muon(_SEED, _MATRICES_ONLY, 2)


def _deep_plain() -> Task:
    draw = Draw(_SEED, "deep_plain 2")  # of the first draw, SiLU under SGD, none of 64 trials learnt more than to guess
    sizes = (64, *[draw.width(28, 52)] * draw.of((5, 6, 7, 8)), 10)
    activation = draw.activation()
    return Task("drawn_deep", f"plain {activation.__name__} MLP, {len(sizes) - 1} layers", draw.optimizer(),
                draw.steps(300, 600), draw.batch(), "cross_entropy",
                partial(perceptron, *sizes, activation=activation), data.shifted_digits)  # fmt: skip


def _batchnorm() -> Task:
    draw = Draw(_SEED, "batchnorm")
    return Task("preactivation", "BatchNorm ResNet with its norms before the convolutions", draw.optimizer(),
                draw.steps(120, 200), draw.of((24, 32, 48)), "cross_entropy",
                partial(net.preactivation_resnet, draw.width(8, 12), draw.of((1, 2))), data.gratings)  # fmt: skip


def _transformer(pre: bool) -> Task:
    title = "pre_ln" if pre else "post_ln"
    draw = Draw(_SEED, title)
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 4)), draw.of((8, 12)), draw.of((2, 3))
    return Task(f"{title}_library", f"{'pre' if pre else 'post'}-LN character Transformer, {depth} blocks", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.transformer, data.SIGNS, length, heads, head_width, depth, pre),
                partial(data.library, length))  # fmt: skip


def _recurrent() -> Task:
    draw = Draw(_SEED, "recurrent")
    length = draw.of((12, 14, 18))
    return Task("minimal_gated", "recurrent character model with one gate", "adamw", draw.steps(250, 400),
                draw.of((8, 12, 16)), "cross_entropy",
                partial(net.MinimalGatedModel, data.SIGNS, draw.width(16, 24), draw.width(28, 44)),
                partial(data.library, length))  # fmt: skip


def _mixer() -> Task:
    draw = Draw(_SEED, "mixer")
    optimizer, bias = draw.matrices_only("mixer" in _MUON)
    return Task("mixer_gratings", "MLP-mixer on gratings", optimizer, draw.steps(150, 250), draw.of((12, 16, 24, 32)),
                "cross_entropy", partial(Mixer, draw.width(8, 16), draw.of((1, 2, 3)), 10, bias),
                data.gratings)  # fmt: skip


def _groupnorm() -> Task:
    draw = Draw(_SEED, "groupnorm")
    return Task("groupnorm_shifted", "GroupNorm ConvNet on moved digits", draw.optimizer(), draw.steps(120, 200),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.groupnorm_stack, draw.of((2, 3, 4)), draw.of((2, 3)), draw.of((3, 4))),
                partial(data.shifted_digits, False))  # fmt: skip


def _teacher() -> Task:
    draw = Draw(_SEED, "teacher")
    optimizer, bias = draw.matrices_only("teacher" in _MUON)
    inputs, width, activation = draw.of((8, 12, 16)), draw.width(32, 64), draw.activation()
    noise = draw.of((0.1, 0.2, 0.3))
    return Task("sine_teacher", f"two sums of sines, noise {noise:g}", optimizer, draw.steps(400, 900), draw.batch(),
                "mse", partial(perceptron, inputs, width, width, 2, activation=activation, bias=bias),
                partial(data.sine_teacher, inputs, noise))  # fmt: skip


def _low_noise() -> Task:
    draw = Draw(_SEED, "low_noise")
    variables, width, activation = draw.of((2, 3, 4, 5)), draw.width(32, 64), draw.activation()
    layers = draw.of((2, 3))
    return Task("resonance", f"low-noise regression in {variables} variables", draw.optimizer(), draw.steps(700, 1200),
                draw.batch(), "mse", partial(perceptron, variables, *[width] * layers, 1, activation=activation),
                partial(data.resonance, variables))  # fmt: skip


def _autoencoder() -> Task:
    draw = Draw(_SEED, "autoencoder")
    optimizer, bias = draw.matrices_only("autoencoder" in _MUON)
    width, code, activation = draw.width(28, 48), draw.of((5, 6, 10, 12)), draw.activation()
    return Task("shifted_autoencoder", f"autoencoder 64-{width}-{code}-{width}-64 of moved digits", optimizer,
                draw.steps(400, 700), draw.batch(), "mse",
                partial(perceptron, 64, width, code, width, 64, activation=activation, bias=bias),
                partial(data.shifted_digits, True, 0.0, True))  # fmt: skip


def _patches() -> Task:
    draw = Draw(_SEED, "patches")
    optimizer, bias = draw.matrices_only("inpainting" in _MUON)
    width, activation = draw.width(40, 72), draw.activation()
    return Task("inpainting", "patches with a hole", optimizer, draw.steps(250, 450), draw.batch(), "mse",
                partial(perceptron, 16, width, width, 16, activation=activation, bias=bias),
                data.inpainting)  # fmt: skip


def _label_noise() -> Task:
    draw = Draw(_SEED, "label_noise")
    wrong, width, activation = draw.of((0.1, 0.2, 0.3, 0.4)), draw.width(48, 80), draw.activation()
    return Task("wrong_shifted", f"MLP, {wrong:.0%} of the labels wrong", draw.optimizer(), draw.steps(250, 450),
                draw.batch(), "cross_entropy", partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.shifted_digits, True, wrong))  # fmt: skip


def _batch_4() -> Task:
    draw = Draw(_SEED, "batch_4")
    width, activation = draw.width(32, 64), draw.activation()
    return Task("gratings_batch_4", "MLP on gratings, batches of four", draw.optimizer(), draw.steps(500, 900), 4,
                "cross_entropy", partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.gratings, True))  # fmt: skip


def _class_table() -> Task:
    draw = Draw(_SEED, "class_table")
    rows, width = draw.of((140, 180, 220, 260)), draw.width(24, 48)
    return Task("hastie_table", f"small table, {rows} rows, two classes", draw.optimizer(), draw.steps(150, 300),
                draw.of((10, 16, 24, 32)), "cross_entropy",
                partial(perceptron, 10, width, width, 2, activation=draw.activation()),
                partial(data.hastie_table, rows), small_table=True)  # fmt: skip


def _number_table() -> Task:
    draw = Draw(_SEED, "number_table")
    rows, width = draw.of((100, 140, 180, 220)), draw.width(24, 48)
    return Task("phase_table", f"small table, {rows} rows, regression", draw.optimizer(), draw.steps(150, 300),
                draw.of((10, 16, 24, 32)), "mse",
                partial(perceptron, 10, width, width, 1, activation=draw.activation()),
                partial(data.phase_table, rows), small_table=True)  # fmt: skip


def _one_pass() -> Task:
    draw = Draw(_SEED, "one_pass")
    inputs, width, steps, batch = draw.of((6, 8, 10)), draw.width(32, 64), draw.steps(300, 600), draw.batch()
    return Task("one_pass", "quadratic forms, each row seen once", draw.optimizer(), steps, batch, "cross_entropy",
                partial(perceptron, inputs, width, width, 3, activation=draw.activation()),
                partial(data.stream, inputs, steps * batch))  # fmt: skip


def _plain_convnet() -> Task:
    draw = Draw(_SEED, "plain_convnet")
    return Task("wave_convnet", "plain ConvNet on gratings", draw.optimizer(), draw.steps(150, 250),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.wave_convnet, draw.width(8, 12), draw.of((2, 3, 4))), data.gratings)  # fmt: skip


def _plane() -> Task:
    draw = Draw(_SEED, "plane")
    arms, width = draw.of((3, 4, 5)), draw.width(20, 40)
    return Task("pinwheel", f"{arms} arms of a pinwheel in the plane", draw.optimizer(), draw.steps(300, 700),
                draw.batch(), "cross_entropy",
                partial(perceptron, 2, width, width, arms, activation=draw.activation()),
                partial(data.pinwheel, arms))  # fmt: skip


DRAWN: tuple[Task, ...] = (
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
