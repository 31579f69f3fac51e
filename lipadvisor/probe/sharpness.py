"""Sharpness: the largest eigenvalue of the loss's Hessian, tracked from visit to visit.

How the parts combine::

    loss -> LossHessian (one graph: gradient, products H v) -> Sharpness (keeps the eigenvector) -> Eigenvalue

Each visit takes a few Hessian-vector products from the eigenvector of the last one. The first goes to that vector, the
others to the residual of the best vector so far, which is then sought in the span of itself, its residual and the
direction it last moved in: as fast as Lanczos, with memory for six vectors however many products there are.

Shapes: ``P`` all parameters, flat.

References:
    Knyazev (2001), *Toward the optimal preconditioned eigensolver*, SIAM J. Sci. Comput. 23, Algorithm 5.1 (block of
    one, no preconditioner); Cohen et al. (2021), arXiv 2103.00065, and (2022), arXiv 2207.14484: sharpness and, for
    Adam, the sharpness of the preconditioned Hessian, as what decides stability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.policies import Status

__all__ = ["Eigenvalue", "LossHessian", "Sharpness"]

LOOSE_RESIDUAL = 0.1  # |H v - value v| / |value| above which the value is not to be trusted
LOST = 1e-6  # what is left of a vector, relative to itself, below which it is rounding


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """A Ritz value: never above the true one.

    Attributes:
        value: of the Hessian, in units of the loss per squared unit of the weights.
        residual: ``|H v - value v| / |value|``; an eigenvalue lies within that share of ``value``.
        status: OK, NOT_CONVERGED or NON_FINITE.
        products: Hessian-vector products it took.
    """

    value: float
    residual: float
    status: Status
    products: int


class LossHessian:
    """The Hessian of a loss at the present weights as a linear map, from one graph that is differentiated twice."""

    def __init__(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Differentiate once. Neither ``.grad`` nor ``requires_grad`` is touched.

        Args:
            loss: a scalar with its graph.
            parameters: those that the Hessian is taken over; the loss need not depend on all of them.

        Raises:
            ValueError: the loss is not a scalar, or has no graph.
            RuntimeError: a custom function in it is differentiable once only; torch would leave it out in silence.
        """
        if loss.numel() != 1 or not loss.requires_grad:
            what = f"shape {tuple(loss.shape)}, " + ("with" if loss.requires_grad else "without") + " a graph"
            raise ValueError(f"LossHessian(loss=...) must be a scalar with its graph, got one of {what}.")
        self.parameters = tuple(parameters)
        self._slopes = torch.autograd.grad(
            loss.reshape(()), self.parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        if _once_only(self._slopes):
            raise RuntimeError("the loss has a custom function marked once_differentiable: it has no Hessian here.")
        self.gradient_P = _flat([slope.detach() for slope in self._slopes])
        self.products = 0

    def product(self, vector_P: Tensor) -> Tensor:
        """Return ``H v`` (P,)."""
        self.products += 1
        parts = vector_P.split([p.numel() for p in self.parameters])
        pairs = [
            (slope, part.reshape(slope.shape).to(slope))
            for slope, part in zip(self._slopes, parts, strict=True)
            if slope.requires_grad
        ]
        if not pairs:  # the loss is linear in the weights
            return torch.zeros_like(vector_P)
        slopes, vectors = zip(*pairs, strict=True)
        images = torch.autograd.grad(
            slopes, self.parameters, vectors, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return _flat([image.detach() for image in images])


@dataclass(slots=True)
class Sharpness:
    """Follows the largest eigenvalue of one Hessian, or of one preconditioned Hessian, through a training.

    Attributes:
        products: at most so many Hessian-vector products a visit, >= 2 (one alone cannot turn the vector).
        cold_products: at most so many of the first visit, and of one whose vector has been lost.
        tolerance: residual at which a visit stops early.
        seed: of the first vector.
        vector_P: eigenvector of the last visit.
    """

    products: int = 3
    cold_products: int = 40
    tolerance: float = 1e-3
    seed: int = 0
    vector_P: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: a number of products is below 2.
        """
        for name in ("products", "cold_products"):
            if getattr(self, name) < 2:
                raise ValueError(f"Sharpness({name}=...) must be at least 2, got {getattr(self, name)}.")

    def measure(self, hessian: LossHessian, scale_P: Tensor | None = None) -> Eigenvalue:
        """Return the largest eigenvalue of ``H``, or of ``P^(1/2) H P^(1/2)``, which are those of ``P H``.

        Args:
            hessian: of the loss, at the present weights.
            scale_P: the diagonal of the preconditioner P, > 0; None stands for ones.
        """
        root_P = None if scale_P is None else scale_P.sqrt()

        def product(vector_P: Tensor) -> Tensor:
            return hessian.product(vector_P) if root_P is None else root_P * hessian.product(root_P * vector_P)

        before, like = hessian.products, hessian.gradient_P
        cold = self.vector_P is None or self.vector_P.shape != like.shape
        if cold:
            generator = torch.Generator().manual_seed(self.seed)
            start_P = torch.randn(like.numel(), generator=generator).to(like)
        else:
            assert self.vector_P is not None
            start_P = self.vector_P.to(like)
        vector_P, value, residual = _climb(
            product, start_P, self.cold_products if cold else self.products, self.tolerance
        )
        taken = hessian.products - before
        if not (math.isfinite(value) and math.isfinite(residual)):
            self.vector_P = None
            return Eigenvalue(float("nan"), float("nan"), Status.NON_FINITE, taken)
        self.vector_P = vector_P
        return Eigenvalue(value, residual, Status.OK if residual < LOOSE_RESIDUAL else Status.NOT_CONVERGED, taken)

    def state_dict(self) -> dict[str, Any]:
        """Return the eigenvector, a tensor (P,) or None."""
        return {"vector": None if self.vector_P is None else self.vector_P.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.vector_P = None if state["vector"] is None else state["vector"].clone()


def _climb(
    product: Callable[[Tensor], Tensor], start_P: Tensor, products: int, tolerance: float
) -> tuple[Tensor, float, float]:
    """Return vector, value and relative residual after at most ``products`` products."""
    x_P = start_P / torch.linalg.vector_norm(start_P)
    image_P = product(x_P)
    moved: tuple[Tensor, Tensor] | None = None  # the direction of the last move, and its image
    for _ in range(products - 1):
        value, residual_P = _rest(x_P, image_P)
        if float(torch.linalg.vector_norm(residual_P)) <= tolerance * abs(value):
            break
        basis, images = [x_P], [image_P]
        found = _orthonormal(residual_P, None, basis, images)
        if found is None:
            break  # exact, or not a number
        basis.append(found[0])
        images.append(product(found[0]))
        if moved is not None and (found := _orthonormal(moved[0], moved[1], basis, images)) is not None:
            basis.append(found[0])
            images.append(found[1])
        small_KK = torch.stack([torch.stack([a @ b for b in images]) for a in basis]).double().cpu()
        if not bool(torch.isfinite(small_KK).all()):
            break
        mix_K = torch.linalg.eigh(0.5 * (small_KK + small_KK.mT))[1][:, -1].tolist()
        moved = _combine(mix_K[1:], basis[1:]), _combine(mix_K[1:], images[1:])
        x_P, image_P = mix_K[0] * x_P + moved[0], mix_K[0] * image_P + moved[1]
        size = torch.linalg.vector_norm(x_P)
        x_P, image_P = x_P / size, image_P / size
    value, residual_P = _rest(x_P, image_P)
    size_of_rest = float(torch.linalg.vector_norm(residual_P))
    return x_P, value, size_of_rest / abs(value) if value else 0.0 * size_of_rest


def _once_only(slopes: Sequence[Tensor]) -> bool:
    """Return whether a node that stands for a missing second derivative is in the graph of ``slopes``."""
    waiting = [slope.grad_fn for slope in slopes if slope.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name().endswith("::Error"):
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return False


def _rest(x_P: Tensor, image_P: Tensor) -> tuple[float, Tensor]:
    value = x_P @ image_P
    return float(value), image_P - value * x_P


def _orthonormal(
    vector_P: Tensor, image_P: Tensor | None, basis: list[Tensor], images: list[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Return the vector made orthonormal to ``basis``, and its image (itself for None); None where nothing is left."""
    at_first = float(torch.linalg.vector_norm(vector_P))
    follows = vector_P if image_P is None else image_P
    for _ in range(2):  # twice is enough for orthogonality to rounding
        for other, other_image in zip(basis, images, strict=True):
            part = other @ vector_P
            vector_P = vector_P - part * other
            follows = follows - part * other_image
    left = float(torch.linalg.vector_norm(vector_P))
    if not left > LOST * at_first:
        return None
    return vector_P / left, follows / left


def _combine(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    total = weights[0] * vectors[0]
    for weight, vector in zip(weights[1:], vectors[1:], strict=True):
        total = total + weight * vector
    return total


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors as one vector, float32 or better, on the first one's device."""
    first = tensors[0]
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return torch.cat([tensor.reshape(-1).to(first.device, dtype) for tensor in tensors])
