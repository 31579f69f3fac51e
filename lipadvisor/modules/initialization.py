"""Lipschitz-aware initialization: each scheme proposes factors, which can be looked at, applied and taken back.

A scheme returns an :class:`InitPlan`; ``plan.preview()`` is a table, ``plan.apply(model)`` scales in place and returns
an :class:`Undo`; ``plan.policy()`` hands the factors to an advisor. Nothing is drawn anew: a factor keeps the
directions of a layer and changes its size only. Where a rule needs no data, the scheme asks the policy that has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lipadvisor.modules.blocks import Residual
from lipadvisor.modules.registry import constant_of, find
from lipadvisor.modules.running import observed, run
from lipadvisor.plain_chain import is_plain_chain
from lipadvisor.policies import (
    DepthScaledInitialization,
    Initialization,
    Layer,
    Observation,
    PlannedInitialization,
    SpectralInitialization,
    Status,
)

__all__ = [
    "InitPlan",
    "Undo",
    "dead_zone_rescue",
    "depth_scaled",
    "draw_anew",
    "layer_sizes",
    "lsuv",
    "spectral",
    "tied_heads",
    "weight_matrices",
]

AT_ONE = 1e-6  # a factor so near to 1 is rounding: what has been brought to a target is there
UNSEEN = "torch's attention multiplies by it without calling a module: its output is not seen"
IDLE = "not called on this batch"
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, slots=True)
class Undo:
    """The weights as they were before a plan was applied."""

    before: tuple[tuple[Tensor, Tensor], ...]  # (parameter, its former value)

    def __call__(self) -> None:
        """Put them back, bit for bit."""
        with torch.no_grad():
            for parameter, value in self.before:
                parameter.copy_(value)


@dataclass(frozen=True, slots=True)
class InitPlan:
    """Factors for weights, by module name: ``weight *= factor``.

    Attributes:
        scheme: which scheme proposed it.
        factors: (module, factor > 0), those at 1 left out.
        reasons: one for each factor.
        skipped: (module, why) of weights that the scheme cannot reach; their layers stay as they are.
    """

    scheme: str
    factors: tuple[tuple[str, float], ...]
    reasons: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def preview(self, model: nn.Module) -> pd.DataFrame:
        """Return module, factor, gain (``rms(W) sqrt(fan_in)``) before and after, and the reason."""
        sizes = layer_sizes(model)
        rows = [
            {"module": name, "factor": factor, "before": sizes[name], "after": sizes[name] * factor, "reason": reason}
            for (name, factor), reason in zip(self.factors, self.reasons, strict=True)
        ]
        return pd.DataFrame(rows, columns=["module", "factor", "before", "after", "reason"])

    def apply(self, model: nn.Module) -> Undo:
        """Scale the weights in place.

        Raises:
            KeyError: a module of the plan is not in the model; nothing has been changed then.
        """
        matrices = weight_matrices(model, embeddings=True)
        targets = [(matrices[name], factor) for name, factor in self.factors]
        before = tuple((parameter, parameter.detach().clone()) for parameter, _ in targets)
        with torch.no_grad():
            for parameter, factor in targets:
                parameter.mul_(factor)
        return Undo(before)

    def policy(self) -> PlannedInitialization:
        """Return the part of a policy that scales so before step 0: ``chain(Lipschitz(), plan.policy())``."""
        return PlannedInitialization(self.factors)


def weight_matrices(model: nn.Module, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """Return the weights that a scheme may scale: those of linear maps, tied ones once, by module name."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for key, suffix in (("weight", ""), ("in_proj_weight", "in_proj")):
            weight = own.get(key)
            if weight is None or weight.ndim < 2 or id(weight) in seen or find(module) is None:
                continue
            seen.add(id(weight))
            if isinstance(module, _EMBEDDINGS) and not embeddings:
                continue  # a head tied to the table is left alone with it
            found[".".join(part for part in (name, suffix) if part)] = weight
    return found


def tied_heads(model: nn.Module) -> dict[str, str]:
    """Return every linear module that shares its weight with an embedding, with the name the weight goes by."""
    names = {id(weight): name for name, weight in weight_matrices(model, embeddings=True).items()}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, _EMBEDDINGS)}
    return {
        name: names[id(module.weight)]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) in tables and id(module.weight) in names
    }


def _fan_in(module: nn.Module | None, weight: Tensor) -> int:
    if type(module).__name__ == "Conv1D":
        return weight.shape[0]
    if isinstance(module, _EMBEDDINGS):
        return 1
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return max(
            weight.shape[0] * math.prod(weight.shape[2:]) // max(math.prod(module.stride), 1) // module.groups, 1
        )
    return weight[0].numel()


def layer_sizes(model: nn.Module) -> dict[str, float]:
    """Return ``q = rms(W) sqrt(fan_in)`` of every weight: 1 keeps the variance of independent inputs."""
    modules = dict(model.named_modules())
    return {
        name: float(weight.detach().float().square().mean().sqrt()) * math.sqrt(_fan_in(modules.get(name), weight))
        for name, weight in weight_matrices(model, embeddings=True).items()
    }


def draw_anew(model: nn.Module, name: str, gain: float = 1.0, seed: int = 0) -> Undo:
    """Draw one weight matrix from a normal distribution, so that ``rms(W) sqrt(fan_in)`` is ``gain``.

    Args:
        model: changed in place.
        name: of the weight, as :func:`weight_matrices` names it.
        gain: > 0.
        seed: of the generator; no global one is drawn from.

    Raises:
        KeyError: the model has no such weight.
        ValueError: ``gain`` is not positive.
    """
    if not gain > 0:
        raise ValueError(f"draw_anew(gain=...) must be positive, got {gain}.")
    weight = weight_matrices(model, embeddings=True)[name]
    before = weight.detach().clone()
    std = gain / math.sqrt(_fan_in(dict(model.named_modules()).get(name), weight))
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * std
    with torch.no_grad():
        weight.copy_(drawn)
    return Undo(((weight, before),))


def _parametrized(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Linear maps whose weight is computed from other parameters, so that there is no weight to scale."""
    return tuple(
        (name, "its weight is computed (weight or spectral normalisation): there is none to scale")
        for name, module in model.named_modules()
        if find(module) is not None
        and isinstance(getattr(module, "weight", None), Tensor)
        and module.weight.ndim > 1
        and "weight" not in module._parameters
    )


def _matrix_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (fan-out, fan-in) of every weight's matrix view."""
    modules = dict(model.named_modules())
    fans = {name: (w.numel(), _fan_in(modules.get(name), w)) for name, w in weight_matrices(model, True).items()}
    return {name: (size // max(fan_in, 1), fan_in) for name, (size, fan_in) in fans.items()}


def dead_zone_rescue(model: nn.Module, rule: Initialization | None = None, table: float = 0.25) -> InitPlan:
    """Bring back what lies outside the dead zone.

    Xavier's and He's initializations lie inside the policy's zone and are left alone. PyTorch's default for Linear and
    Conv (gain 0.577) does not, and is lifted by 1.56, in a plain chain of more than two layers before the head by more
    (Xavier's likewise), since losses multiply; nor do weights that are small on purpose, such as the ends of
    GPT-2's branches: give a ``rule`` with a lower ``low`` to leave them. A table that is the head as well is never
    touched, since its size is that of the logits. A table with a normalisation right behind it needs no rescue and gets
    one all the same: what follows it is not looked at here.

    Args:
        model: whose weights are read.
        rule: the policy whose zone and target hold.
        table: rms of an embedding outside [0.05, 0.8] after the rescue. Normal embeddings of rms 1 (PyTorch's) are
            outside.

    Raises:
        ValueError: ``table`` is not positive.
    """
    if not table > 0:
        raise ValueError(f"dead_zone_rescue(table=...) must be positive, got {table}.")
    rule = Initialization() if rule is None else rule
    modules, sizes = dict(model.named_modules()), layer_sizes(model)
    tables = {name: q for name, q in sizes.items() if isinstance(modules.get(name), _EMBEDDINGS)}
    matrices = {name: q for name, q in sizes.items() if name not in tables and q > 0}
    heads = set(tied_heads(model).values())
    outside = {name: q for name, q in tables.items() if q > 0 and not 0.05 <= q <= 0.8 and name not in heads}
    factors = [(name, table / q) for name, q in outside.items()]
    reasons = [f"rms = {tables[name]:.3g} lies outside [0.05, 0.8]" for name, _ in factors]
    shapes = _matrix_shapes(model)
    seen = (_layer(name, shapes[name], log_gain=math.log(q)) for name, q in matrices.items())
    decision, _ = rule.decide(_untrained(seen, is_plain_chain(model)), rule.init())
    rescued = [(name, factor) for name, factor in decision.init_scale if abs(factor - 1) > AT_ONE]
    factors += rescued
    reasons += [
        f"rms(W) sqrt(fan_in) = {sizes[name]:.3g} lies outside the zone (policy: {decision.reason})"
        for name, _ in rescued
    ]
    return InitPlan("dead_zone", tuple(factors), tuple(reasons), _parametrized(model))


def _layer(name: str, shape: tuple[int, int] = (0, 0), log_norm: float = math.nan, log_gain: float = math.nan) -> Layer:
    return Layer(name, "linear", shape, 0, 1.0, log_norm, math.nan, log_gain, status=Status.NOT_MEASURED)


def _untrained(layers: Iterable[Layer], chain: bool = False) -> Observation:
    """What a policy looks at before step 0; of the layers an initialization reads shape, norm and gain alone."""
    kind = "chain" if chain else "network"
    network = Layer("*", kind, (), -1, 1.0, math.nan, math.nan, 0.0, status=Status.NOT_MEASURED)
    return Observation(0, None, 0.0, "unknown", 0.0, (), network, tuple(layers), status=Status.NOT_MEASURED)


def spectral(model: nn.Module, target: float = 1.0, inputs: Mapping[str, Tensor] | None = None) -> InitPlan:
    """Give every matrix the operator norm ``target * sqrt(fan_out / fan_in)``: equal relative size of all layers.

    The rule is :class:`~lipadvisor.policies.SpectralInitialization`, which does the same under an advisor.

    Args:
        model: whose weights are read.
        target: common spectral scale, > 0.
        inputs: an input of each convolution, where its true operator is wanted; the matrix view otherwise.

    References:
        Yang, Simon, Bernstein: A spectral condition for feature learning, arXiv 2310.17813, condition 1.
    """
    if not target > 0:
        raise ValueError(f"spectral(target=...) must be positive, got {target}.")
    rule, modules, norms = SpectralInitialization(target), dict(model.named_modules()), {}
    for name, weight in weight_matrices(model).items():
        module = modules.get(name)
        given = (inputs[name],) if inputs and name in inputs else ()
        entry = find(module) if module is not None else None
        if entry is not None and (entry.name == "linear" or given):
            try:
                norms[name] = constant_of(module, *given).value  # type: ignore[arg-type]
            except ValueError:  # weights that are not finite: left as they are
                norms[name] = math.nan
        else:
            norms[name] = float(torch.linalg.matrix_norm(weight.detach().flatten(1).float(), 2))
    shapes = _matrix_shapes(model)
    layers = [
        _layer(name, shapes[name], log_norm=math.log(norm)) for name, norm in norms.items() if 0 < norm < math.inf
    ]
    decision, _ = rule.decide(_untrained(layers), rule.init())
    factors = tuple((name, factor) for name, factor in decision.init_scale if abs(factor - 1) > AT_ONE)
    reasons = (f"operator norm {norms[n]:.3g}, wanted {rule.wanted(*shapes[n]):.3g}" for n, _ in factors)
    zero = tuple((name, "it is zero, or not finite") for name, norm in norms.items() if not 0 < norm < math.inf)
    return InitPlan("spectral", factors, tuple(reasons), _parametrized(model) + zero)


def depth_scaled(model: nn.Module, branches: Mapping[str, int] | None = None) -> InitPlan:
    """Scale the last matrix of every residual branch by ``1 / sqrt(number of joins)``.

    The rule is :class:`~lipadvisor.policies.DepthScaledInitialization`, which does the same under an advisor.

    Args:
        model: whose weights are read.
        branches: ``{name of a branch's last matrix: number of joins}``; without it, the last matrix in the branch of
            every :class:`~lipadvisor.modules.Residual`. A model that adds its branches in its own ``forward`` needs it.

    Raises:
        ValueError: no ``branches`` are given and the model has no ``Residual``, or a name has no weight matrix.

    References:
        Radford et al. 2019 (GPT-2), section 2.3; Zhang, Dauphin, Ma: Fixup, arXiv 1901.09321.
    """
    if branches is None:
        last = []
        for name, module in model.named_modules():
            if isinstance(module, Residual):
                inside = [n for n in weight_matrices(model) if n.startswith(f"{name}.branch." if name else "branch.")]
                last += inside[-1:]
        if not last:
            must = "must name the last matrix of each branch where the model has no lipadvisor.modules.Residual"
            raise ValueError(f"depth_scaled(branches=...) {must}, got None.")
        branches = dict.fromkeys(last, len(last))
    unknown = sorted(set(branches) - set(weight_matrices(model)))
    if unknown:
        raise ValueError(f"depth_scaled(branches=...) must name weight matrices of the model, got {unknown[0]!r}.")
    rule = DepthScaledInitialization(tuple(branches.items()))
    factors = rule.decide(_untrained(_layer(name) for name in branches), rule.init())[0].init_scale
    return InitPlan("depth_scaled", factors, tuple(f"one of {branches[name]} residual joins" for name, _ in factors))


def lsuv(model: nn.Module, batch: Any, target: float = 1.0, passes: int = 3, tolerance: float = 0.05) -> InitPlan:
    """Make each matrix's output have the rms ``target`` on the batch, in order of execution (data-dependent).

    A policy has no data: it takes what is found here as a plan, ``chain(Lipschitz(), lsuv(model, batch).policy())``.

    Args:
        model: left as it is; the plan is found on its weights and taken back.
        batch: as for :func:`~lipadvisor.modules.compose`.
        target: rms of every output, > 0.
        passes: sweeps over the network, >= 1.
        tolerance: relative deviation that is left alone.

    References:
        Mishkin and Matas: All you need is a good init, arXiv 1511.06422, algorithm 1 (without orthonormal restart).
    """
    if not target > 0 or passes < 1:
        raise ValueError(f"lsuv(target=..., passes=...) must be positive, got {target} and {passes}.")
    modules = dict(model.named_modules())
    matrices = {name: w for name, w in weight_matrices(model).items() if name in modules and not _quiet(modules[name])}
    before = {name: weight.detach().clone() for name, weight in matrices.items()}
    total = dict.fromkeys(matrices, 1.0)
    aside = {name: UNSEEN for name in weight_matrices(model) if name not in matrices} | dict.fromkeys(matrices, IDLE)

    def scale(name: str, weight: nn.Parameter) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            bias = getattr(module, "bias", None)
            bias = None if bias is None else _spread(bias, module, output)
            pure = output if bias is None else output - bias
            size = float(pure.float().square().mean().sqrt())
            if not (size > 0 and math.isfinite(size)):
                aside[name] = f"its output has rms {size:.3g}"
                return output
            aside.pop(name, None)
            if abs(size / target - 1) <= tolerance:
                return output
            factor = target / size
            weight.mul_(factor)
            total[name] *= factor
            return pure * factor + (0 if bias is None else bias)

        return hook

    try:
        with observed(model), torch.no_grad():
            for _ in range(passes):
                handles = [modules[name].register_forward_hook(scale(name, w)) for name, w in matrices.items()]
                try:
                    run(model, batch)
                finally:
                    for handle in handles:
                        handle.remove()
    finally:
        with torch.no_grad():
            for name, value in before.items():
                matrices[name].copy_(value)
    kept = tuple((name, factor) for name, factor in total.items() if abs(factor - 1) > tolerance)
    told = tuple(f"output rms on the batch to {target:g}" for _ in kept)
    return InitPlan("lsuv", kept, told, _parametrized(model) + tuple(aside.items()))


def _quiet(module: nn.Module) -> bool:
    """Modules whose forward is never called: torch's attention uses its output projection's weight by itself."""
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _spread(bias: Tensor, module: nn.Module, output: Tensor) -> Tensor:
    """A bias in the shape in which it was added: axis 1 for convolutions, the last axis for all others."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return bias.reshape(-1, *(1,) * module.weight[0, 0].ndim)
    return bias
