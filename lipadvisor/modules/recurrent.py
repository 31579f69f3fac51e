"""Recurrent layers and their cells.

Elman networks have closed bounds: with ``h_t = phi(W x_t + U h_{t-1} + b)`` and ``|phi'| <= 1``,

    cell              |(x, h) -> h'| <= |[W U]|
    layer, T steps    |x -> (h_1..h_T)| <= |W| (1 + |U| + ... + |U|^(T-1)),    below |W| / (1 - |U|) where |U| < 1

because the map is ``(I - D U S)^-1 D W`` with the shift S and D = diag(phi') (Pascanu et al., arXiv 1211.5063, section
2.1, for the condition). LSTM and GRU multiply gates with states, so their Jacobians grow with the states: they have a
local constant only, the Jacobian's norm on the batch (Miller and Hardt, arXiv 1805.10369, section 4, for conditions
under which they contract).

A layer's output counts as what differs from step to step and from layer to layer: all outputs, final states of the
lower layers, and an LSTM's cell states.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.normalization import local_constant
from lipadvisor.modules.operator_norm import matrix_norm
from lipadvisor.modules.registry import Entry, register, register_all

__all__ = ["elman_bound"]

ELMAN = "arXiv 1211.5063, section 2.1; docs in recurrent.py"
GATED = "not Lipschitz on unbounded states; arXiv 1805.10369, section 4"


def _cell(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    joint = torch.cat([module.weight_ih.detach(), module.weight_hh.detach()], 1)
    return Constant(matrix_norm(joint), Kind.UPPER, "input and state jointly", ELMAN)


def _cell_jacobian(module: nn.RNNCell, x: Tensor) -> Tensor:
    """With respect to the input, at state 0."""
    z = x @ module.weight_ih.detach().T
    if module.bias:
        z = z + module.bias_ih.detach() + module.bias_hh.detach()
    slope = 1 - torch.tanh(z) ** 2 if module.nonlinearity == "tanh" else (z > 0).to(z.dtype)
    return slope[:, None] * module.weight_ih.detach()


def elman_bound(module: nn.RNN, steps: int | None = None) -> float:
    """Return the closed bound of an Elman network on sequences of ``steps``, of any length without it.

    Layers multiply, and so does dropout between them in training; both directions see the same input side by side.
    """
    total, sides = 1.0, 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        square = 0.0
        for side in range(sides):
            suffix = f"l{layer}" + ("_reverse" if side else "")
            W, U = (matrix_norm(getattr(module, f"weight_{kind}_{suffix}")) for kind in ("ih", "hh"))
            square += (W * _geometric(U, steps)) ** 2
        total *= math.sqrt(square)
    if module.training and 0 < module.dropout < 1:
        total *= (1 - module.dropout) ** (1 - module.num_layers)
    return total


def _geometric(u: float, steps: int | None) -> float:
    if steps is None:
        return 1 / (1 - u) if u < 1 else math.inf
    if u > 1 and steps * math.log(u) > 700:
        return math.inf
    return float(steps) if abs(u - 1) < 1e-12 else (1 - u**steps) / (1 - u)


def _elman(module: nn.RNN, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        value = elman_bound(module)
        note = "outputs, any length" if math.isfinite(value) else "no bound for any length: |U| >= 1; give an input"
        return Constant(value, Kind.UPPER, note, ELMAN)
    x = inputs[0]
    steps = x.shape[0] if x.ndim == 2 or not module.batch_first else x.shape[1]
    here = _layer(module, inputs)
    condition = f"{here.condition}; outputs on any sequence of {steps}: at most {elman_bound(module, steps):.4g}"
    return Constant(here.value, Kind.LOCAL, condition, ELMAN)


def _layer(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    """Local; the states that come with the input vary with it."""
    if not inputs:
        raise ValueError(f"the constant of {type(module).__name__} needs an input: it is local.")
    pair = isinstance(module, nn.LSTM)
    last = 2 if module.bidirectional else 1

    def joint(x: Tensor, *states: Tensor) -> Tensor:
        given: Any = tuple(states) if pair else states[0] if states else None
        output, final = module(x, given) if states else module(x)
        hidden, cells = final if pair else (final, None)
        parts = [output, hidden[:-last]] + ([] if cells is None else [cells])
        return torch.cat([part.flatten() for part in parts])

    here = local_constant(joint, inputs)
    return Constant(here.value, Kind.LOCAL, here.condition, GATED)


def _gated_cell(module: Any, inputs: tuple[Tensor, ...]) -> Constant:
    if not inputs:
        raise ValueError(f"the constant of {type(module).__name__} needs an input: it is local.")

    def joint(x: Tensor, *states: Tensor) -> Tensor:
        if isinstance(module, nn.LSTMCell):
            return torch.cat(module(x, states) if states else module(x), -1)
        y: Tensor = module(x, *states)
        return y

    here = local_constant(joint, inputs)
    return Constant(here.value, Kind.LOCAL, here.condition, GATED)


register(nn.RNNCell, Entry("recurrent", _cell, _cell_jacobian))
register_all((nn.LSTMCell, nn.GRUCell), Entry("recurrent", _gated_cell))
register(nn.RNN, Entry("recurrent", _elman))
register_all((nn.LSTM, nn.GRU), Entry("recurrent", _layer))
