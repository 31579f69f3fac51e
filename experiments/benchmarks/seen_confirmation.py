"""A former confirmation list, the third: one run after a freeze has used it up, and it has joined the design list."""

from __future__ import annotations

from functools import partial

from torch import nn

from lipadvisor.experiments.benchmarks import further_networks as net
from lipadvisor.experiments.benchmarks import further_sources as data
from lipadvisor.experiments.benchmarks.networks import BatchNorm, Mixer, perceptron, plain_convnet
from lipadvisor.experiments.benchmarks.sources import digits_images, digits_vectors
from lipadvisor.experiments.benchmarks.task import Task

__all__ = ["SEEN"]

_WINDOW = 14  # characters

SEEN: tuple[Task, ...] = (
    Task("batchnorm_stack", "BatchNorm ConvNet with GELU, batches of 48", "adamw", 120, 48, "cross_entropy",
         partial(net.batchnorm_stack, 10, 3), digits_images),
    Task("batchnorm_mlp", "BatchNorm MLP", "adamw", 160, 40, "cross_entropy",
         partial(perceptron, 64, 56, 56, 56, 10, norm=BatchNorm), digits_vectors),
    Task("batchnorm_sgd", "BatchNorm ConvNet, 20 % of the labels moved on by one", "sgd", 110, 40, "cross_entropy",
         partial(net.batchnorm_stack, 8, 4), partial(data.wrong_digits, 0.2, False)),
    Task("quantiles", "small table, three shells, 15 % of the labels drawn anew", "adamw", 220, 20, "cross_entropy",
         partial(perceptron, 12, 40, 40, 3), data.quantiles, small_table=True),
    Task("sparse_table", "small table, regression with much noise", "sgd", 260, 16, "mse",
         partial(perceptron, 24, 32, 32, 1, activation=nn.Tanh), data.sparse_table, small_table=True),
    Task("mixer_batch_6", "narrow mixer, four blocks, batches of 6", "sgd", 350, 6, "cross_entropy",
         partial(Mixer, 10, 4, 10), digits_images),
    Task("convnet_batch_8", "GroupNorm ConvNet, batches of 8", "adamw", 240, 8, "cross_entropy",
         partial(plain_convnet, 8, True), digits_images),
    Task("tanh_batch_5", "tanh MLP, batches of 5, 15 % of the labels moved on by one", "adamw", 500, 5,
         "cross_entropy", partial(perceptron, 64, 40, 40, 10, activation=nn.Tanh), partial(data.wrong_digits, 0.15)),
    Task("gru_columns", "GRU reading image columns, batches of 16", "adamw", 350, 16, "cross_entropy",
         partial(net.GruColumns, 28, 10), digits_images),
    Task("elman_letters", "tanh recurrence as a character model", "adamw", 300, 16, "cross_entropy",
         partial(net.ElmanLanguageModel, data.SYMBOLS, 20, 40), partial(data.letters, _WINDOW)),
    Task("ripples", "low-noise regression in three variables", "adamw", 1000, 24, "mse",
         partial(perceptron, 3, 56, 56, 1, activation=nn.SiLU), data.ripples),
    Task("post_ln_rows", "post-LN Transformer over image rows", "adamw", 300, 24, "cross_entropy",
         partial(net.RowTransformer, 20, 2, 2, 10, False), digits_images),
    Task("deep_silu", "plain SiLU MLP, seven layers", "adamw", 400, 40, "cross_entropy",
         partial(perceptron, 64, 36, 36, 36, 36, 36, 36, 10, activation=nn.SiLU), digits_vectors),
    Task("checkerboard", "fields of a board in the plane", "sgd", 900, 32, "cross_entropy",
         partial(perceptron, 2, 40, 40, 40, 2), data.checkerboard),
    Task("halves_muon", "lower half from the upper half, under Muon", "muon", 250, 32, "mse",
         partial(perceptron, 32, 64, 64, 32, bias=False), data.half_reconstruction),
    Task("sharpening", "GroupNorm ConvNet from image to image", "adamw", 160, 20, "mse",
         partial(net.sharpening_convnet, 8), data.blurred_images),
    Task("few_digits", "LayerNorm MLP on 250 digits", "sgd", 300, 32, "cross_entropy",
         partial(perceptron, 64, 80, 80, 10, norm=nn.LayerNorm), partial(data.few_digits, 250)),
)  # fmt: skip
