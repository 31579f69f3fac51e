"""The confirmation list: run once, after constants and source were frozen.

One task of each family (of recurrent language models two, of small tables five), written before any policy was run on
any of them. Who writes a list knows what has lost before, so sizes, batches, lengths of runs, noise, activations and
optimizers are drawn: each function names the ranges, which are those of the list before, and a seeded generator picks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lipadvisor.experiments.benchmarks import ninth_networks as net
from lipadvisor.experiments.benchmarks import ninth_sources as data
from lipadvisor.experiments.benchmarks.draw import Draw, under_muon
from lipadvisor.experiments.benchmarks.networks import perceptron
from lipadvisor.experiments.benchmarks.task import LossKind, Task
from lipadvisor.experiments.workloads import Data

__all__ = ["CONFIRMATION"]

_SEED = 22_110_145  # of all draws
_MATRICES_ONLY = ("autoencoder", "deep_plain", "mixer", "patches", "teacher")  # what Muon can train without biases
_MUON = under_muon(_SEED, _MATRICES_ONLY, 3)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Softsign, nn.Tanh, nn.SiLU, nn.GELU)


def _deep_plain() -> Task:
    draw = Draw(_SEED, "deep_plain")
    optimizer, bias = draw.matrices_only("deep_plain" in _MUON)
    sizes = (64, *[draw.width(28, 52)] * draw.of((5, 6, 7, 8)), 10)
    activation = draw.of(_ACTIVATIONS)
    return Task("deep_weaves", f"plain {activation.__name__} MLP, {len(sizes) - 1} layers", optimizer,
                draw.steps(300, 600), draw.batch(), "cross_entropy",
                partial(perceptron, *sizes, activation=activation, bias=bias),
                partial(data.weaves, True))  # fmt: skip


def _batchnorm() -> Task:
    draw = Draw(_SEED, "batchnorm")
    return Task("twin_moons", "BatchNorm ResNet, two branches a block", draw.optimizer(), draw.steps(120, 200),
                draw.of((24, 32, 48)), "cross_entropy",
                partial(net.twin_resnet, draw.of((8, 10, 12)), draw.of((1, 2)), 6), data.moon_phases)  # fmt: skip


def _pre_ln() -> Task:
    draw = Draw(_SEED, "pre_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("talking_heads", f"pre-LN character Transformer, {depth} blocks, talking heads", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.TalkingTransformer, data.KEYS, length, heads, head_width, depth),
                partial(data.containers, length))  # fmt: skip


def _post_ln() -> Task:
    draw = Draw(_SEED, "post_ln")
    length, heads, head_width, depth = draw.of((12, 16, 20)), draw.of((2, 3, 4)), draw.of((6, 8, 10)), draw.of((2, 3))
    return Task("persistent_memory", f"post-LN character Transformer, {depth} blocks, persistent memory", "adamw",
                draw.steps(250, 400), draw.of((6, 8, 12)), "cross_entropy",
                partial(net.MemoryTransformer, data.KEYS, length, heads, head_width, depth, draw.of((2, 3, 4))),
                partial(data.containers, length))  # fmt: skip


def _antisymmetric() -> Task:
    draw = Draw(_SEED, "antisymmetric")
    length = draw.of((10, 12, 14))
    return Task("antisymmetric", "recurrent character model, antisymmetric state", "adamw",
                draw.steps(250, 400), draw.of((8, 12, 16)), "cross_entropy",
                partial(net.AntisymmetricRecurrence, data.KEYS, draw.width(16, 24), draw.width(24, 40)),
                partial(data.processes, length))  # fmt: skip


def _delayed() -> Task:
    draw = Draw(_SEED, "delayed")
    length = draw.of((12, 14, 18))
    return Task("delayed_recurrence", "recurrent character model, tanh of two states", "adamw", draw.steps(250, 400),
                draw.of((8, 12, 16)), "cross_entropy",
                partial(net.DelayedRecurrence, data.KEYS, draw.width(16, 24), draw.width(24, 40)),
                partial(data.processes, length))  # fmt: skip


def _mixer() -> Task:
    draw = Draw(_SEED, "mixer")
    optimizer, bias = draw.matrices_only("mixer" in _MUON)
    return Task("axial_mixer", "mixer by rows and columns on rippled digits", optimizer, draw.steps(150, 250),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.AxialMixer, draw.width(12, 24), draw.of((1, 2, 3)), 10, bias),
                data.rippled_digits)  # fmt: skip


def _groupnorm() -> Task:
    draw = Draw(_SEED, "groupnorm")
    return Task("fractal_weaves", "GroupNorm ConvNet, fractal", draw.optimizer(), draw.steps(120, 200),
                draw.of((12, 16, 24, 32)), "cross_entropy",
                partial(net.groupnorm_fractal, draw.of((1, 2, 4)), draw.of((2, 3)), draw.of((2, 3))),
                data.weaves)  # fmt: skip


def _teacher() -> Task:
    draw = Draw(_SEED, "teacher")
    optimizer, bias = draw.matrices_only("teacher" in _MUON)
    inputs, width, activation = draw.of((8, 12, 16)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    noise = draw.of((0.1, 0.2, 0.3))
    return Task("gates", f"teacher of gated units, noise {noise:g}", optimizer, draw.steps(400, 900),
                draw.batch(), "mse", partial(perceptron, inputs, width, width, 1, activation=activation, bias=bias),
                partial(data.gates_teacher, inputs, noise))  # fmt: skip


def _low_noise() -> Task:
    draw = Draw(_SEED, "low_noise")
    variables, width, activation = draw.of((2, 3, 4, 5)), draw.width(32, 64), draw.of(_ACTIVATIONS)
    layers = draw.of((2, 3))
    return Task("orbit", f"low-noise regression in {variables} variables", draw.optimizer(), draw.steps(700, 1200),
                draw.batch(), "mse", partial(perceptron, variables, *[width] * layers, 1, activation=activation),
                partial(data.orbit, variables))  # fmt: skip


def _autoencoder() -> Task:
    draw = Draw(_SEED, "autoencoder")
    optimizer, bias = draw.matrices_only("autoencoder" in _MUON)
    width, code, activation = draw.width(28, 48), draw.of((6, 8, 10, 12)), draw.of(_ACTIVATIONS)
    return Task("moons_autoencoder", f"autoencoder 64-{width}-{code}-{width}-64 of moons", optimizer,
                draw.steps(400, 700), draw.batch(), "mse",
                partial(perceptron, 64, width, code, width, 64, activation=activation, bias=bias),
                partial(data.moon_phases, True, 1200, True))  # fmt: skip


def _patches() -> Task:
    draw = Draw(_SEED, "patches")
    optimizer, bias = draw.matrices_only("patches" in _MUON)
    width, activation = draw.width(40, 72), draw.of(_ACTIVATIONS)
    return Task("inverted_patches", "patches from those of which half are negatives", optimizer, draw.steps(250, 450),
                draw.batch(), "mse", partial(perceptron, 16, width, width, 16, activation=activation, bias=bias),
                data.inverted_patches)  # fmt: skip


def _label_noise() -> Task:
    draw = Draw(_SEED, "label_noise")
    wrong, width, activation = draw.of((0.1, 0.2, 0.3, 0.4)), draw.width(48, 80), draw.of(_ACTIVATIONS)
    return Task("bent_digits", f"MLP, {wrong:.0%} of the labels wrong, those of the most bent digits", draw.optimizer(),
                draw.steps(250, 450), draw.batch(), "cross_entropy",
                partial(perceptron, 64, width, width, 10, activation=activation),
                partial(data.rippled_digits, True, wrong))  # fmt: skip


def _batch_4() -> Task:
    draw = Draw(_SEED, "batch_4")
    width, activation = draw.width(32, 64), draw.of(_ACTIVATIONS)
    return Task("moons_batch_4", "MLP that tells phases of the moon, batches of four", draw.optimizer(),
                draw.steps(500, 900), 4, "cross_entropy",
                partial(perceptron, 64, width, width, 6, activation=activation),
                partial(data.moon_phases, True))  # fmt: skip


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
    return Task("sectors", "to which fifth of a circle, each row seen once", draw.optimizer(), steps, batch,
                "cross_entropy", partial(perceptron, inputs, width, width, 5, activation=draw.of(_ACTIVATIONS)),
                partial(data.sectors, inputs, steps * batch))  # fmt: skip


CONFIRMATION: tuple[Task, ...] = (
    _deep_plain(),
    _batchnorm(),
    _pre_ln(),
    _post_ln(),
    _antisymmetric(),
    _delayed(),
    _mixer(),
    _groupnorm(),
    _teacher(),
    _low_noise(),
    _autoencoder(),
    _patches(),
    _label_noise(),
    _batch_4(),
    _table("waveform_table", "three classes of waves", "cross_entropy", 21, 3, data.waveform_table),
    _table("parity_table", "two classes, measured", "cross_entropy", 14, 2, data.parity_table),
    _table("gaps_table", "a fifth of the entries missing", "mse", 10, 1, data.gaps_table),
    _table("uneven_table", "uneven noise", "mse", 8, 1, data.uneven_table),
    _table("compactness_table", "regression, measured", "mse", 10, 1, data.compactness_table),
    _one_pass(),
)
