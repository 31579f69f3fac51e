"""Slow twins of a measured step: dense operators, full SVDs and the gradients of single samples, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.probe.layers import TrackedLayer
from lipadvisor.probe.pack import Pack, Refreshed
from lipadvisor.terms import Terms

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the samples of the cross-entropy of the first dimension's rows, places averaged."""
    logits = output.flatten(1, -2).mean(1) if output.dim() > 2 else output
    return nn.functional.cross_entropy(logits, target)


def build(make: Callable[[], nn.Module], example: Tensor | None = None, seed: int = 0) -> nn.Module:
    """A model in float64; ``example`` tells lazy layers their sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double()
        if example is not None:
            model(example)
        return model


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, batch: Batch, step: int, loss: Loss
) -> Terms:
    lr, wd = optimizer.param_groups[0]["lr"], optimizer.param_groups[0].get("weight_decay", 0.0)
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    probe.arm(step)
    loss(model(batch[0]), batch[1]).backward()
    probe.before_update()
    optimizer.step()
    probe.after_update({0: lr}, {0: wd if decoupled else 0.0})
    optimizer.zero_grad()
    terms = probe.collect(step)
    assert terms is not None
    return terms


def dense(probe: Probe, index: int, kernel: Tensor) -> Tensor:
    """The layer's operator as a matrix (M, N)."""
    layer = probe.layers[index]
    operator = layer.operator(probe._capture.input_shapes.get(index))
    assert operator is not None
    return operator.apply(kernel, torch.eye(operator.inputs, dtype=torch.float64)).mT


def sample_gradients(model: nn.Module, probe: Probe, batch: Batch, loss: Loss) -> list[list[Tensor]]:
    """Gradient of each sample's own loss, at each layer's kernel."""
    weights = [layer.weight for layer in probe.layers]
    found = []
    for x, y in zip(*batch, strict=True):
        grads = torch.autograd.grad(loss(model(x[None]), y[None]), weights, allow_unused=True)
        full = [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)]
        found.append([layer.view(g) for layer, g in zip(probe.layers, full, strict=True)])
    return found


def curvature(W: Tensor, E: Tensor) -> Tensor:
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    a, b = U.mT @ (E @ Vh[0]), Vh @ (E.mT @ U[:, 0])
    inside = ((s[0] * (a**2 + b**2) + 2 * s * a * b)[1:] / (s[0] ** 2 - s[1:] ** 2)).sum()
    rest = (E @ Vh[0]).square().sum() - a.square().sum() + (E.mT @ U[:, 0]).square().sum() - b.square().sum()
    return inside + rest / s[0]


_BEFORE: dict[int, Refreshed] = {}  # what packs held before their last step, which they let go of
_keep = Pack.keep


def _noted(pack: Pack, sound: Sequence[bool]) -> None:
    if pack.old is not None:
        _BEFORE[id(pack)] = pack.old
    _keep(pack, sound)


Pack.keep = _noted  # type: ignore[method-assign]


def top_pair(probe: Probe, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, s_1, v that the probe held before its last step, without the padding of its pack."""
    pack = next(pack for pack in probe._packs if index in pack.indices)
    place = pack.indices.index(index)
    block, operator = _BEFORE[id(pack)].block, probe.layers[index].operator(probe._capture.input_shapes.get(index))
    assert operator is not None
    return block.u_RM[place, 0, : operator.outputs], block.s_R[place, 0], block.v_RN[place, 0, : operator.inputs]


def preconditioner(optimizer: torch.optim.Optimizer, layer: TrackedLayer) -> Tensor:
    """P of Adam after the step, of the kernel's shape; ones for SGD."""
    ones = torch.ones_like(layer.view(layer.weight.detach()))
    if not isinstance(optimizer, torch.optim.Adam):
        return ones
    state, group = optimizer.state[layer.weight], optimizer.param_groups[0]
    root = (state["exp_avg_sq"] / (1 - group["betas"][1] ** int(state["step"]))).sqrt() + group["eps"]
    return layer.view(1 / root)


def check_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    probe: Probe,
    batches: Sequence[Batch],
    loss: Loss = cross_entropy,
    *,
    noisy: Callable[[TrackedLayer], bool] = lambda layer: True,
    statuses: frozenset[str] = frozenset({"ok", "gap_limited"}),
) -> Terms:
    """Train over ``batches``, measured; compare everything measured at the last one with its slow twin."""
    for step, batch in enumerate(batches[:-1]):
        take_step(model, optimizer, probe, batch, step, loss)
    old = [layer.value().clone() for layer in probe.layers]
    grads = sample_gradients(model, probe, batches[-1], loss)
    terms = take_step(model, optimizer, probe, batches[-1], len(batches) - 1, loss)
    lr = optimizer.param_groups[0]["lr"]
    scalars: list[np.ndarray[Any, Any]] = []
    for index, layer in enumerate(probe.layers):
        new = layer.value()
        kept = 1 - lr * terms.weight_decay_L[index]
        direction = (new - old[index] * kept) / lr
        W, E, after = (dense(probe, index, kernel) for kernel in (old[index], direction, new))
        s = torch.linalg.svdvals(W)
        u, s_1, v = top_pair(probe, index)
        np.testing.assert_allclose(terms.log_norm_L[index], float(s[0].log()), atol=1e-6, err_msg=layer.name)
        np.testing.assert_allclose(float(s_1), float(s[0]), rtol=1e-6)
        np.testing.assert_allclose(terms.first_L[index], float(u @ E @ v / s_1), rtol=1e-9, atol=1e-12)
        size = float(torch.linalg.svdvals(E)[0] / s[0])
        assert 0.5 * size <= terms.update_ratio_L[index] <= size * (1 + 1e-6), (
            layer.name
        )  # a Ritz value after few steps
        moved, rows = (x.reshape(x.shape[0], -1).double().norm(dim=1) for x in (direction, old[index]))
        np.testing.assert_allclose(terms.frobenius_ratio_L[index], float(moved.norm() / rows.norm()), rtol=1e-6)
        np.testing.assert_allclose(terms.row_ratio_L[index], float(moved.max() / rows.max()), rtol=1e-6)
        change = float((torch.linalg.svdvals(after)[0] / s[0]).log())
        np.testing.assert_allclose(terms.change_L[index], change, rtol=1e-2, atol=1e-5, err_msg=layer.name)
        np.testing.assert_allclose(
            terms.log_norm_after_L[index], float(torch.linalg.svdvals(after)[0].log()), atol=1e-5
        )
        if not noisy(layer):
            scalars.append(np.full(len(grads), np.nan))
            continue
        P = preconditioner(optimizer, layer)
        noise = [dense(probe, index, P * g[index]) for g in grads]
        scalars.append(torch.stack([u @ g @ v / s_1 for g in noise]).numpy())
        assert terms.status_L[index] in statuses, (layer.name, terms.status_L[index])
    expected = np.cov(np.stack(scalars)) / len(grads)
    expected = np.atleast_2d(expected)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    known = np.isfinite(expected)
    assert known.any() or not any(noisy(layer) for layer in probe.layers)
    assert (np.abs(terms.noise_LL - expected)[known] <= 1e-10 * scale[known] + 1e-25).all(), np.nanmax(
        np.abs(terms.noise_LL - expected) / scale
    )
    return terms
