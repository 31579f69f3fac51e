"""The local Lipschitz constant of a network at each sample of a batch, followed from visit to visit.

Each sample has a vector of its own, so that one pass over the batch serves all of them, and the largest may pass from
one sample to another. Shapes: ``B`` samples, ``N`` entries of a sample's input, ``K`` vectors of a visit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.local import perturbed
from lipadvisor.modules.operator_norm import Map, jacobian_products
from lipadvisor.modules.running import arguments, observed, run
from lipadvisor.policies import Status

__all__ = ["SampleNorms", "TrackedLipschitz"]

LOOSE_RESIDUAL = 0.1  # |J'J v - s^2 v| / s^2 above which the largest is not to be trusted
LOST = 1e-6  # what is left of a vector, relative to itself, below which it is rounding


@dataclass(frozen=True, slots=True)
class SampleNorms:
    """``|J_f(x_i)|_2`` of each sample, from below.

    Attributes:
        norm_B: the norms, on the CPU in float64.
        residual: ``|J'J v - s^2 v| / s^2`` of the sample whose norm is largest.
        status: OK, NOT_CONVERGED, NON_FINITE, or NOT_MEASURED where there is nothing to differentiate.
    """

    norm_B: Tensor
    residual: float
    status: Status

    @property
    def value(self) -> float:
        """The largest: the local Lipschitz constant on the batch; nan where there is none."""
        return float(self.norm_B.max()) if self.norm_B.numel() else float("nan")


_NOTHING = SampleNorms(torch.zeros(0, dtype=torch.float64), float("nan"), Status.NOT_MEASURED)


@dataclass(slots=True)
class TrackedLipschitz:
    """Lanczos on ``J'J`` by Jacobian products, a few from the vectors of the last visit.

    The network is looked at in evaluation mode (dropout off, running statistics), where the samples are independent.

    ``J v`` and ``J' u`` are one backward pass each through a graph that is kept.

    Attributes:
        sources: modules whose outputs are the variable; empty: the float inputs, and where there are none, the
            outputs of the embeddings that look up each sample's own rows.
        products: pairs of Jacobian products of a visit, >= 2.
        cold_products: of the first visit, and of one with a batch of another shape.
        seed: of the first vectors.
        vector_BN: input directions of the last visit, one for each sample.

    References:
        Golub and Kahan, SIAM J. Numer. Anal. 2 (1965) 205, section 3.
    """

    sources: tuple[str, ...] = ()
    products: int = 3
    cold_products: int = 12
    seed: int = 0
    vector_BN: Tensor | None = None

    def measure(self, model: nn.Module, batch: Any) -> SampleNorms:
        """Return the norms on ``batch``: as in :func:`~lipadvisor.modules.local_lipschitz`."""
        samples = _samples(batch)
        with observed(model):
            model.eval()
            function, zero = perturbed(model, batch, self.sources)
            if not zero.numel():  # nothing but integers comes in: tokens
                function, zero = perturbed(model, batch, _embeddings(model, batch, samples))
            if not samples or not zero.numel() or any(size % samples for size in function.sizes):
                return _NOTHING
            widths = [size // samples for size in function.sizes]

            def moved(delta_BN: Tensor) -> Tensor:
                return function(torch.cat([part.reshape(-1) for part in delta_BN.split(widths, dim=1)]))

            zero_BN = zero.reshape(samples, -1)
            cold = self.vector_BN is None or self.vector_BN.shape != zero_BN.shape
            start_BN, count = self._start(zero_BN), self.cold_products if cold else self.products
            try:
                found, self.vector_BN = _climb(jacobian_products(moved, zero_BN), start_BN, count)
            except RuntimeError as error:
                if "not implemented" not in str(error):
                    raise
                pair = jacobian_products(moved, zero_BN, forward_mode=True)
                found, self.vector_BN = _climb(pair, start_BN, count)
        return found

    def _start(self, like_BN: Tensor) -> Tensor:
        kept = self.vector_BN
        if kept is not None and kept.shape == like_BN.shape:
            return kept.to(like_BN)
        generator = torch.Generator().manual_seed(self.seed)
        return _unit(torch.randn(like_BN.shape, generator=generator).to(like_BN))

    def state_dict(self) -> dict[str, Any]:
        """Return the directions, a tensor (B, N) or None."""
        return {"vector": None if self.vector_BN is None else self.vector_BN.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.vector_BN = None if state["vector"] is None else state["vector"].clone()


def _samples(batch: Any) -> int:
    """Return the common length of the first dimensions of the float inputs, or of all inputs; 0 if there is none."""
    args, kwargs = arguments(batch)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
    lengths = {value.shape[0] for value in tensors if value.is_floating_point()} or {v.shape[0] for v in tensors}
    return int(next(iter(lengths))) if len(lengths) == 1 else 0


def _embeddings(model: nn.Module, batch: Any, samples: int) -> tuple[str, ...]:
    """Return the names of the embeddings whose outputs have the samples first."""
    found: dict[str, None] = {}

    def note(name: str, output: Tensor) -> None:
        if output.dim() > 1 and output.shape[0] == samples:
            found[name] = None

    hooks = [
        module.register_forward_hook(lambda m, a, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    ]
    try:
        with torch.no_grad():
            run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


def _climb(products: tuple[Map, Map] | None, v_BN: Tensor, count: int) -> tuple[SampleNorms, Tensor | None]:
    """Return the norms, and the vectors to start from next time (None where they are no good)."""
    if products is None:
        return SampleNorms(torch.zeros(len(v_BN), dtype=torch.float64), 0.0, Status.OK), None
    apply, adjoint = products
    vectors, images = [], []  # v, and J'J v: the outputs need not have the samples first
    for _ in range(min(count, v_BN.shape[1])):
        vectors.append(v_BN)
        images.append(adjoint(apply(v_BN)).detach())
        v_BN = _outside(images[-1], vectors)
    basis_KBN, image_KBN = torch.stack(vectors), torch.stack(images)
    small_BKK = torch.einsum("kbn,lbn->bkl", basis_KBN, image_KBN).double().cpu()
    if not bool(torch.isfinite(small_BKK).all()):
        return SampleNorms(torch.full((len(v_BN),), float("nan")).double(), float("nan"), Status.NON_FINITE), None
    squares_BK, mix_BKK = torch.linalg.eigh(0.5 * (small_BKK + small_BKK.mT))
    square_B, mix_BK = squares_BK[:, -1].clamp_min(0.0), mix_BKK[:, :, -1].to(basis_KBN)
    vector_BN = torch.einsum("bk,kbn->bn", mix_BK, basis_KBN)
    most = int(square_B.argmax())
    square = float(square_B[most])
    rest_N = torch.einsum("k,kn->n", mix_BK[most], image_KBN[:, most]) - square * vector_BN[most]
    residual = float(torch.linalg.vector_norm(rest_N)) / square if square else 0.0
    status = Status.OK if residual < LOOSE_RESIDUAL else Status.NOT_CONVERGED
    return SampleNorms(square_B.sqrt(), residual, status), _unit(vector_BN)


def _outside(v_BN: Tensor, vectors: list[Tensor]) -> Tensor:
    """Return each sample's vector orthonormal to its own ``vectors``; zeros where nothing is left."""
    at_first_B1 = torch.linalg.vector_norm(v_BN, dim=1, keepdim=True)
    for _ in range(2):  # twice is enough for orthogonality to rounding
        for other_BN in vectors:
            v_BN = v_BN - (v_BN * other_BN).sum(1, keepdim=True) * other_BN
    left_B1 = torch.linalg.vector_norm(v_BN, dim=1, keepdim=True)
    kept_BN: Tensor = torch.where(left_B1 > LOST * at_first_B1, v_BN / left_B1, torch.zeros_like(v_BN))
    return kept_BN


def _unit(v_BN: Tensor) -> Tensor:
    unit_BN: Tensor = v_BN / torch.linalg.vector_norm(v_BN, dim=1, keepdim=True).clamp_min(1e-30)
    return unit_BN
