"""Models broken on purpose, each with a task that a healthy copy learns in a few seconds.

Optimizer and rate are those that a user would take for the healthy model; the broken one is to fail with them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import zoo
from torch import Tensor, nn

from lipadvisor.modules import DotProductAttention, Residual, TransformerBlock
from lipadvisor.modules.cures import query_key_views
from lipadvisor.modules.initialization import weight_matrices
from lipadvisor.modules.running import run

Task = Callable[[torch.Generator], tuple[Tensor, Tensor]]  # a fresh batch and its labels
Change = Callable[[nn.Module], None]
Build = Callable[[], nn.Module]
CLASSES = zoo.CLASSES


def patterns(*shape: int, size: int = 16) -> Task:
    """Noise and one of four fixed patterns; the label is which."""
    kept = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(9))

    def draw(g: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, CLASSES, (size,), generator=g)
        return 0.8 * (torch.randn(size, *shape, generator=g) + kept[labels]), labels

    return draw


def averages(length: int = 8, width: int = 32, size: int = 16) -> Task:
    """Every token is to name the class that the mean over all tokens points to: one token alone does not tell."""
    teacher = torch.randn(width, CLASSES, generator=torch.Generator().manual_seed(9))

    def draw(g: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, length, width, generator=g)
        return x, (x.mean(1) @ teacher).argmax(-1)[:, None].expand(-1, length)

    return draw


def majority(causal: bool, length: int = 8, size: int = 16) -> Task:
    """The commonest class (token modulo 4) so far, or of the whole sequence."""

    def draw(g: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, zoo.VOCABULARY, (size, length), generator=g)
        counts = nn.functional.one_hot(tokens % CLASSES, CLASSES)
        return tokens, (counts.cumsum(1) if causal else counts.sum(1, keepdim=True).expand_as(counts)).argmax(-1)

    return draw


@dataclass(frozen=True)
class Broken:
    """One model with one defect: where it is, what it is called, and how a user would train such a model."""

    name: str
    build: Build
    task: Task
    spoil: Change
    where: tuple[str, ...]
    problem: str
    cure: str
    optimizer: str = "adamw"
    lr: float = 1e-3
    steps: int = 200
    plan: tuple[tuple[str, int], ...] = ()

    def batch(self) -> Tensor:
        return self.task(torch.Generator().manual_seed(0))[0]


def losses(case: Broken, model: nn.Module, warmup: int = 0, seed: int = 0) -> list[float]:
    """Train on fresh batches (the same ones for every call); losses over that of guessing, infinite once not finite."""
    g = torch.Generator().manual_seed(1000 + seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if case.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(parameters, lr=case.lr, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=case.lr)
    seen = []
    model.train(isinstance_of_any(model, nn.modules.batchnorm._BatchNorm))
    for step in range(case.steps):
        for group in optimizer.param_groups:
            group["lr"] = case.lr * min(1.0, (step + 1) / (warmup + 1))
        x, labels = case.task(g)
        logits = run(model, x)[..., :CLASSES]
        loss: Tensor = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        value = float(loss.detach()) / math.log(CLASSES)
        seen.append(value if math.isfinite(value) else math.inf)
        if not math.isfinite(value):
            return seen
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen


def final(seen: list[float], last: int = 20) -> float:
    """Mean loss over the last steps."""
    return sum(seen[-last:]) / len(seen[-last:])


def isinstance_of_any(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


# Defects.


def untouched(model: nn.Module) -> None:
    pass


def enlarge(*names: str, factor: float = 30.0) -> Change:
    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            for name in names:
                weight_matrices(model, embeddings=True)[name].mul_(factor)

    return spoil


def blow_up(*names: str, scores: float = 30.0) -> Change:
    """Queries and keys so large that the scores' standard deviation is about ``scores``."""

    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            for name in names:
                for view in query_key_views(model.get_submodule(name)):
                    if view.ndim > 1:
                        view.mul_(scores**0.5 / view.square().mean().sqrt() / view.shape[-1] ** 0.5)

    return spoil


# Architectures.


def mlp(depth: int = 4, width: int = 64) -> Build:
    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(20, width), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Linear(width, width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, CLASSES))

    return build


def sigmoids(depth: int, width: int) -> Build:
    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(20, width), nn.Sigmoid()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.Sigmoid()]
        return nn.Sequential(*layers, nn.Linear(width, CLASSES))

    return build


def plain_resnet() -> nn.Module:
    """Residual blocks without normalisation."""

    def branch() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    blocks = [Residual(branch()) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(8 * 144, CLASSES))


def post(depth: int, width: int = 32) -> Build:
    def build() -> nn.Module:
        blocks = [TransformerBlock(width, DotProductAttention(width, 4), order="post") for _ in range(depth)]
        return nn.Sequential(*blocks)

    return build


def torch_post(depth: int) -> Build:
    def build() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), depth)

    return build


def neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=zoo.VOCABULARY, **zoo.SMALL))


def bloom() -> nn.Module:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=zoo.VOCABULARY, hidden_size=32, n_layer=2, n_head=4))


def first(build: Callable[[], tuple[nn.Module, Any]]) -> Build:
    return lambda: build()[0]


def pre(depth: int, width: int = 32) -> Build:
    return lambda: nn.Sequential(*(TransformerBlock(width) for _ in range(depth)), nn.LayerNorm(width))


def language(tokens: float, tied: bool) -> Build:
    """Pre-norm blocks between a table of the given rms and a head, which may be that table."""

    def build() -> nn.Module:
        table, head = nn.Embedding(zoo.VOCABULARY, 32), nn.Linear(32, zoo.VOCABULARY, bias=False)
        nn.init.normal_(table.weight, std=tokens)
        if tied:
            head.weight = table.weight
        return nn.Sequential(table, TransformerBlock(32), TransformerBlock(32), nn.LayerNorm(32), head)

    return build


# The cases.

SCALE = ("init_scale", "scale_weight")
SIGMOID = ("vanishing", "replace_activation tanh")
WARMUP = ("post_norm", "warmup")
LOGITS = ("attention_logits", "scale_query_key")
NO_WARMUP = (("warmup_steps", 0), ("total_steps", 1000))
VECTORS, IMAGES, SMALL_IMAGES = patterns(20), patterns(3, 12, 12), patterns(3, 32, 32)
MEAN, SO_FAR, OVERALL = averages(), majority(causal=True), majority(causal=False)


def _scale(name: str, build: Build, task: Task, where: str, lr: float, factor: float = 30.0) -> Broken:
    return Broken(name, build, task, enlarge(where, factor=factor), (where,), *SCALE, optimizer="sgd", lr=lr)


def _sigmoid(depth: int, width: int) -> Broken:
    where = tuple(str(2 * i + 1) for i in range(depth))
    return Broken(f"sigmoid_{depth}", sigmoids(depth, width), VECTORS, untouched, where, *SIGMOID, steps=250)


def _post(name: str, build: Build, where: str, lr: float, steps: int = 250) -> Broken:
    return Broken(name, build, MEAN, untouched, (where,), *WARMUP, lr=lr, steps=steps, plan=NO_WARMUP)


def _logits(name: str, build: Build, task: Task, where: str, count: int = 2, steps: int = 300) -> Broken:
    names = tuple(where.format(i) for i in range(count))
    return Broken(name, build, task, blow_up(*names), names, *LOGITS, steps=steps)


BROKEN = (
    _scale("mlp_first", mlp(), VECTORS, "0", 0.05),
    _scale("mlp_middle", mlp(6), VECTORS, "4", 0.05),
    _scale("mlp_last", mlp(5), VECTORS, "8", 0.05),
    _scale("plain_resnet", plain_resnet, IMAGES, "2.branch.0", 0.005),
    _scale("vit_feed", first(zoo.vit), SMALL_IMAGES, "vit.layers.0.mlp.fc1", 0.03),
    _scale("gpt2_feed", first(zoo.gpt2), SO_FAR, "transformer.h.1.mlp.c_fc", 0.03),
    _scale("gpt2_end_of_branch", first(zoo.gpt2), SO_FAR, "transformer.h.1.attn.c_proj", 0.1),
    _scale("llama_end_of_branch", first(zoo.llama), SO_FAR, "model.layers.0.mlp.down_proj", 0.3),
    _scale("gpt2_table", first(zoo.gpt2), SO_FAR, "transformer.wte", 0.03, 200),
    _scale("table", language(1.0, tied=False), OVERALL, "0", 0.03, 50),
    _sigmoid(8, 32),
    _sigmoid(12, 48),
    _sigmoid(16, 32),
    _sigmoid(20, 64),
    _post("post_torch_6", torch_post(6), "layers.0.norm1", 5e-3),
    _post("post_torch_8", torch_post(8), "layers.0.norm1", 4e-3),
    _post("post_torch_12", torch_post(12), "layers.0.norm1", 3e-3),
    _post("post_own_12", post(12), "0.steps.1", 3e-3, 400),
    _logits("logits_torch", torch_post(2), MEAN, "layers.{}.self_attn"),
    _logits("logits_gpt2", first(zoo.gpt2), SO_FAR, "transformer.h.{}.attn"),
    _logits("logits_llama", first(zoo.llama), SO_FAR, "model.layers.{}.self_attn"),
    _logits("logits_neox", neox, SO_FAR, "gpt_neox.layers.{}.attention"),
    _logits("logits_bloom", bloom, SO_FAR, "transformer.h.{}.self_attention"),
)

# Diagnosed rightly, and yet no ruin: a normalisation behind the weight takes its size away, and Adam's steps know no
# size. What is left of the harm is that such a weight hardly turns: the model gets there later.
_CONV, _FEED = "1.join.branch.3", "layers.0.linear1"
SLOWED = (
    Broken("resnet_conv", first(zoo.own_resnet), IMAGES, enlarge(_CONV), (_CONV,), *SCALE, steps=100),
    Broken("encoder_feed", first(zoo.encoder), MEAN, enlarge(_FEED, factor=100.0), (_FEED,), *SCALE),
)
