"""The design list, which policies are designed on; CONFIRMATION is run once their constants are frozen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lipadvisor.experiments.benchmarks import more_networks as more
from lipadvisor.experiments.benchmarks import more_sources as more_data
from lipadvisor.experiments.benchmarks import networks as net
from lipadvisor.experiments.benchmarks import sources
from lipadvisor.experiments.benchmarks.confirmation import CONFIRMATION
from lipadvisor.experiments.benchmarks.drawn_confirmation import DRAWN
from lipadvisor.experiments.benchmarks.eighth_confirmation import EIGHTH
from lipadvisor.experiments.benchmarks.seen_confirmation import SEEN
from lipadvisor.experiments.benchmarks.seventh_confirmation import SEVENTH
from lipadvisor.experiments.benchmarks.sixth_confirmation import SIXTH
from lipadvisor.experiments.benchmarks.task import Task
from lipadvisor.experiments.benchmarks.used_confirmation import USED

__all__ = ["CONFIRMATION", "DESIGN", "HORIZON_TASKS", "INTERVAL_TASKS", "QUICK", "SHOCK_TASKS", "TASKS"]

_LENGTH = 16  # characters in a window of text
_WINDOW = 20  # of documents


def _transformer(pre: bool) -> nn.Module:
    return net.CharacterTransformer(sources.VOCABULARY, _LENGTH, width=24, heads=2, depth=2, pre=pre)


def _mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True) -> Callable[[], nn.Module]:
    return partial(net.perceptron, *sizes, activation=activation, bias=bias)


_text = partial(sources.text, _LENGTH)

DESIGN: tuple[Task, ...] = (
    Task("mlp_digits", "MLP, three layers", "adamw", 400, 32, "cross_entropy", _mlp(64, 64, 64, 10),
         sources.digits_vectors),
    Task("deep_plain", "plain ReLU MLP, eight layers", "adamw", 500, 32, "cross_entropy",
         _mlp(64, 32, 32, 32, 32, 32, 32, 32, 10), sources.digits_vectors),
    Task("batchnorm_resnet", "BatchNorm ResNet, five convolutions", "sgd", 150, 32, "cross_entropy",
         partial(net.residual_convnet, 8, 2), sources.digits_images),
    Task("groupnorm_convnet", "GroupNorm ConvNet", "adamw", 150, 32, "cross_entropy",
         partial(net.plain_convnet, 12, True), sources.digits_images),
    Task("gru_text", "GRU character model", "adamw", 400, 8, "cross_entropy",
         partial(net.GruLanguageModel, sources.VOCABULARY, 24, 32), _text),
    Task("mixer_digits", "MLP-mixer", "adamw", 200, 32, "cross_entropy", partial(net.Mixer, 12, 2, 10),
         sources.digits_images),
    Task("teacher", "tanh teacher", "sgd", 800, 32, "mse", _mlp(20, 48, 48, 1, activation=nn.Tanh), sources.teacher),
    Task("low_noise", "low-noise regression", "adamw", 1200, 32, "mse", _mlp(4, 48, 48, 1), sources.wave),
    Task("autoencoder", "autoencoder 64-32-8-32-64", "adamw", 500, 32, "mse", _mlp(64, 32, 8, 32, 64),
         sources.digits_reconstruction),
    Task("label_noise", "30 % label noise", "sgd", 400, 32, "cross_entropy", _mlp(64, 64, 64, 10),
         partial(sources.noisy_digits, 0.3)),
    Task("batch_4", "batches of four", "sgd", 800, 4, "cross_entropy", _mlp(64, 48, 48, 10), sources.digits_vectors),
    Task("muon_digits", "MLP under Muon", "muon", 250, 32, "cross_entropy", _mlp(64, 64, 64, 10, bias=False),
         sources.digits_vectors),
    Task("plain_convnet", "plain ConvNet", "sgd", 250, 32, "cross_entropy", partial(net.plain_convnet, 12, False),
         sources.digits_images),
    Task("diabetes", "small table, regression", "adamw", 200, 32, "mse", _mlp(10, 32, 32, 1),
         partial(sources.table, "diabetes", 222, 110), small_table=True),
    Task("wine", "small table, three classes", "sgd", 120, 16, "cross_entropy", _mlp(13, 32, 32, 3),
         partial(sources.table, "wine", 58, 60), small_table=True),
    Task("pre_ln_text", "pre-LN character Transformer", "adamw", 500, 8, "cross_entropy", partial(_transformer, True),
         _text),
    # From here on: a former confirmation list, seen by too many versions of the constants.
    Task("convnet_adamw", "plain ConvNet, batches of 16", "adamw", 200, 16, "cross_entropy",
         partial(net.plain_convnet, 8, False), sources.digits_images),
    Task("gru_rows", "GRU reading image rows", "adamw", 300, 32, "cross_entropy", partial(net.GruReader, 24, 10),
         sources.digits_images),
    Task("deep_tanh", "plain tanh MLP, six layers", "sgd", 500, 32, "cross_entropy",
         _mlp(64, 40, 40, 40, 40, 40, 10, activation=nn.Tanh), sources.digits_vectors),
    Task("patches", "patch denoising, one pass", "adamw", 300, 32, "mse", _mlp(16, 64, 64, 16), sources.digits_patches),
    Task("friedman", "Friedman regression", "sgd", 900, 16, "mse", _mlp(10, 48, 48, 1),
         partial(sources.friedman, 1000)),
    Task("spirals", "three spirals in the plane", "adamw", 600, 16, "cross_entropy", _mlp(2, 32, 32, 32, 3),
         sources.spirals),
    Task("mixer_muon", "MLP-mixer under Muon", "muon", 150, 32, "cross_entropy", partial(net.Mixer, 12, 2, 10, False),
         sources.digits_images),
    Task("noisy_groupnorm", "GroupNorm ConvNet, 20 % label noise", "sgd", 150, 32, "cross_entropy",
         partial(net.plain_convnet, 12, True), partial(sources.noisy_digits, 0.2, False)),
    Task("batch_4_adamw", "batches of four", "adamw", 700, 4, "cross_entropy", _mlp(64, 48, 10),
         sources.digits_vectors),
    Task("breast_cancer", "small table, two classes", "adamw", 150, 32, "cross_entropy", _mlp(30, 32, 32, 2),
         partial(sources.table, "breast_cancer", 200, 180), small_table=True),
    Task("small_friedman", "100 rows of Friedman's function", "adamw", 300, 16, "mse", _mlp(10, 32, 32, 1),
         partial(sources.friedman, 100, 0.5), small_table=True),
    Task("post_ln_text", "post-LN character Transformer", "adamw", 500, 8, "cross_entropy",
         partial(_transformer, False), _text),
    # From here on: a second former confirmation list.
    Task("wide_gelu", "wide GELU MLP, batches of 64", "sgd", 300, 64, "cross_entropy",
         partial(net.perceptron, 64, 160, 160, 10, activation=nn.GELU), sources.digits_vectors),
    Task("noisy_muon", "tanh MLP under Muon, 40 % label noise", "muon", 200, 48, "cross_entropy",
         partial(net.perceptron, 64, 48, 48, 10, activation=nn.Tanh, bias=False), partial(sources.noisy_digits, 0.4)),
    Task("lstm_documents", "LSTM character model", "adamw", 350, 12, "cross_entropy",
         partial(more.LstmLanguageModel, more_data.LETTERS, 16, 32), partial(more_data.documents, _WINDOW)),
    Task("adding", "tanh recurrence, adding problem", "adamw", 700, 32, "mse", partial(more.ElmanRegressor, 2, 24),
         more_data.adding),
    Task("patch_transformer", "Transformer over image patches", "adamw", 250, 24, "cross_entropy",
         partial(more.PatchTransformer, 16, 2, 2, 10), sources.digits_images),
    Task("residual_waves", "residual MLP on Fourier features", "adamw", 600, 48, "mse",
         partial(more.residual_perceptron, 32, 32, 3, 1), more_data.coordinates),
    Task("batchnorm_adamw", "BatchNorm ConvNet, batches of 64", "adamw", 150, 64, "cross_entropy",
         partial(more.batchnorm_convnet, 8), sources.digits_images),
    Task("denoising_convnet", "ConvNet from image to image", "sgd", 200, 16, "mse", partial(more.denoising_convnet, 10),
         more_data.noisy_images),
    Task("teacher_muon", "ReLU teacher, two outputs, under Muon", "muon", 400, 64, "mse",
         partial(net.perceptron, 12, 40, 40, 40, 2, bias=False), more_data.relu_teacher),
    Task("moons", "two half circles, batches of 8", "sgd", 500, 8, "cross_entropy",
         partial(net.perceptron, 2, 24, 24, 2), more_data.moons),
    Task("tanh_autoencoder", "tanh autoencoder 64-24-4-24-64", "sgd", 900, 24, "mse",
         partial(net.perceptron, 64, 24, 4, 24, 64, activation=nn.Tanh), sources.digits_reconstruction),
    Task("mixer_batch_8", "deeper mixer, batches of 8", "adamw", 300, 8, "cross_entropy", partial(net.Mixer, 8, 3, 10),
         sources.digits_images),
    Task("flipped_table", "small table, three classes, a tenth of the labels wrong", "adamw", 250, 24, "cross_entropy",
         partial(net.perceptron, 20, 48, 48, 3), more_data.flipped_table, small_table=True),
    Task("iris", "small table, three flowers", "sgd", 200, 10, "cross_entropy", partial(net.perceptron, 4, 20, 20, 3),
         partial(sources.table, "iris", 60, 45), small_table=True),
    *SEEN,  # a third one
    *DRAWN,  # a fourth one
    *USED,  # a fifth one
    *SIXTH,  # a sixth one
    *SEVENTH,  # a seventh one
    *EIGHTH,  # an eighth one
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in (*DESIGN, *CONFIRMATION)}

QUICK = frozenset(
    {"mlp_digits", "deep_plain", "low_noise", "autoencoder", "label_noise", "diabetes", "wine"}
    | {"deep_tanh", "patches", "friedman", "spirals", "breast_cancer", "small_friedman"}
)  # of the design list, those that take seconds: a quick look must not use up the confirmation list
INTERVAL_TASKS = frozenset(
    {"mlp_digits", "autoencoder", "low_noise"} | {"deep_tanh", "friedman", "spirals"}
)  # of the design list, those of 400 to 1,200 steps that take seconds
HORIZON_TASKS = frozenset(
    {"autoencoder", "patches", "deep_plain", "deep_tanh"}
    | {"batchnorm_mlp", "convnet_adamw", "gru_rows", "label_noise"}
)  # run 30 times as long by the horizon suite
SHOCK_TASKS = frozenset(
    {"mlp_digits", "deep_plain", "deep_tanh", "spirals", "batch_4_adamw", "muon_digits"}
    | {"low_noise", "autoencoder", "friedman"}
)  # of the design list; the last three have no labels, and are given the written learning rate alone
