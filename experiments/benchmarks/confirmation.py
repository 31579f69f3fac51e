"""The confirmation list: tasks that no constant was chosen on, run once the constants are frozen.

Other architectures, widths, optimizers, batches, data and noise than on the design list. The list that stood here
before was looked at with several versions of the constants, and has joined the design list.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from lipadvisor.experiments.benchmarks import more_networks as net
from lipadvisor.experiments.benchmarks import more_sources as data
from lipadvisor.experiments.benchmarks import sources
from lipadvisor.experiments.benchmarks.networks import Mixer, perceptron
from lipadvisor.experiments.benchmarks.task import Task

__all__ = ["CONFIRMATION"]

_WINDOW = 20  # characters

CONFIRMATION: tuple[Task, ...] = (
    Task("wide_gelu", "wide GELU MLP, batches of 64", "sgd", 300, 64, "cross_entropy",
         partial(perceptron, 64, 160, 160, 10, activation=nn.GELU), sources.digits_vectors),
    Task("noisy_muon", "tanh MLP under Muon, 40 % label noise", "muon", 200, 48, "cross_entropy",
         partial(perceptron, 64, 48, 48, 10, activation=nn.Tanh, bias=False), partial(sources.noisy_digits, 0.4)),
    Task("lstm_documents", "LSTM character model", "adamw", 350, 12, "cross_entropy",
         partial(net.LstmLanguageModel, data.LETTERS, 16, 32), partial(data.documents, _WINDOW)),
    Task("adding", "tanh recurrence, adding problem", "adamw", 700, 32, "mse", partial(net.ElmanRegressor, 2, 24),
         data.adding),
    Task("patch_transformer", "Transformer over image patches", "adamw", 250, 24, "cross_entropy",
         partial(net.PatchTransformer, 16, 2, 2, 10), sources.digits_images),
    Task("residual_waves", "residual MLP on Fourier features", "adamw", 600, 48, "mse",
         partial(net.residual_perceptron, 32, 32, 3, 1), data.coordinates),
    Task("batchnorm_adamw", "BatchNorm ConvNet, batches of 64", "adamw", 150, 64, "cross_entropy",
         partial(net.batchnorm_convnet, 8), sources.digits_images),
    Task("denoising_convnet", "ConvNet from image to image", "sgd", 200, 16, "mse", partial(net.denoising_convnet, 10),
         data.noisy_images),
    Task("teacher_muon", "ReLU teacher, two outputs, under Muon", "muon", 400, 64, "mse",
         partial(perceptron, 12, 40, 40, 40, 2, bias=False), data.relu_teacher),
    Task("moons", "two half circles, batches of 8", "sgd", 500, 8, "cross_entropy", partial(perceptron, 2, 24, 24, 2),
         data.moons),
    Task("tanh_autoencoder", "tanh autoencoder 64-24-4-24-64", "sgd", 900, 24, "mse",
         partial(perceptron, 64, 24, 4, 24, 64, activation=nn.Tanh), sources.digits_reconstruction),
    Task("mixer_batch_8", "deeper mixer, batches of 8", "adamw", 300, 8, "cross_entropy", partial(Mixer, 8, 3, 10),
         sources.digits_images),
    Task("flipped_table", "small table, three classes, a tenth of the labels wrong", "adamw", 250, 24, "cross_entropy",
         partial(perceptron, 20, 48, 48, 3), data.flipped_table, small_table=True),
    Task("iris", "small table, three flowers", "sgd", 200, 10, "cross_entropy", partial(perceptron, 4, 20, 20, 3),
         partial(sources.table, "iris", 60, 45), small_table=True),
)  # fmt: skip
