"""``nn.MultiheadAttention``: the projections of queries, keys and values, each by itself, and that of the output.

The module hands its weights to one fused function, so that no layer inside it is ever called. What the function saw
and what reached its projections is worked out again on measured steps: the attention is run once more from the
projected inputs, with the same dropout, and differentiated to them.

Shapes: ``B`` samples, ``T`` places, ``E`` embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from lipadvisor.probe.kinds.kind import Candidate, Options, wide
from lipadvisor.probe.kinds.linear import LinearUse, MatrixForm

__all__ = ["AttentionCall", "AttentionReader", "GatheredProjectionUse", "ProjectionUse", "find_attention"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_ARGUMENTS = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip


def find_attention(module: nn.Module, options: Options) -> tuple[Candidate, ...] | str | None:
    """Return the four projections of an attention module, why they cannot be measured, or None for other modules."""
    if not isinstance(module, nn.MultiheadAttention):
        return None
    if is_parametrized(module) or is_parametrized(module.out_proj):
        return "an attention module whose weights are computed is not supported"
    reader, width = AttentionReader(module), module.embed_dim
    found = []
    for place, name in enumerate(PROJECTIONS[:3]):
        use = ProjectionUse(module, name, reader)
        if module.in_proj_weight is not None:
            form, key, rows = MatrixForm(width, width), "in_proj_weight", slice(place * width, (place + 1) * width)
            found.append(Candidate(key, "linear", (width, width), form, use, suffix=name, rows=rows))
        else:
            form = MatrixForm(width, (width, module.kdim, module.vdim)[place])
            shape = (form.outputs, form.inputs)
            found.append(Candidate(f"{name}_weight", "linear", shape, form, use, suffix=name))
    form = MatrixForm(width, width)
    use = ProjectionUse(module, "out_proj", reader)
    found.append(Candidate("weight", "linear", (width, width), form, use, suffix="out_proj", owner=module.out_proj))
    return tuple(found)


@dataclass(slots=True, eq=False)
class AttentionCall:
    """What a call was given, and what is worked out from it once its gradient is known.

    Attributes:
        given: the arguments by name, detached.
        training: whether dropout was on.
        generator: state of the random generator before the call; None without dropout.
        pairs: input and output gradient of each projection, (B, T, E) each.
    """

    given: dict[str, Any]
    training: bool
    generator: Tensor | None
    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class AttentionReader:
    """Reads the calls of one attention module, for all its projections at once."""

    module: nn.MultiheadAttention
    _generator: Tensor | None = None
    _last: AttentionCall | None = None  # the call under way, until it is worked out

    def enter(self) -> None:
        """Note the state of the random generator before a call."""
        self._last = None
        active = self.module.training and self.module.dropout > 0.0
        self._generator = _state(self.module.out_proj.weight.device) if active else None

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> AttentionCall:
        """Return the call; the same one for every projection."""
        if self._last is None:
            given = dict(zip(_ARGUMENTS, arguments, strict=False)) | dict(keywords)
            given = {name: x.detach() if isinstance(x, Tensor) else x for name, x in given.items()}
            self._last = AttentionCall(given, self.module.training, self._generator)
        return self._last

    def work_out(self, call: AttentionCall, grad: Tensor) -> None:
        """Fill ``call.pairs`` from the gradient at the module's output."""
        module, self._last = self.module, None
        batched = call.given["query"].dim() == 3
        inputs = [self._ordered(call.given[name], batched) for name in ("query", "key", "value")]
        if call.generator is None:
            inputs = [wide(x) for x in inputs]
        like = inputs[0]
        output = module.out_proj.weight.detach().to(like)
        leaves = [self._project(place, x).requires_grad_() for place, x in enumerate(inputs)]
        with torch.enable_grad(), _generator_at(call.generator, like.device):
            context = self._attend(call, leaves)
        upstream = self._ordered(grad, batched).to(like)
        grads = torch.autograd.grad(context, leaves, upstream @ output, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
        seen = [*zip(inputs, filled, strict=True), (context.detach(), upstream)]
        for name, (x, d) in zip(PROJECTIONS, seen, strict=True):
            call.pairs[name] = (wide(x).transpose(0, 1), wide(d).transpose(0, 1))

    def _ordered(self, x: Tensor, batched: bool) -> Tensor:
        """Return (T, B, E)."""
        if not batched:
            return x.unsqueeze(1)
        return x.transpose(0, 1) if self.module.batch_first else x

    def _project(self, place: int, x: Tensor) -> Tensor:
        """Return the queries, keys or values of inputs ``x``, detached."""
        module, width = self.module, self.module.embed_dim
        part = slice(place * width, (place + 1) * width)
        if module.in_proj_weight is not None:
            weight = module.in_proj_weight[part]
        else:
            weight = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)[place]
        bias = None if module.in_proj_bias is None else module.in_proj_bias[part].detach().to(x)
        return functional.linear(x, weight.detach().to(x), bias)

    def _attend(self, call: AttentionCall, leaves: list[Tensor]) -> Tensor:
        """Return what the output projection is given (T, B, E)."""
        module, given = self.module, call.given
        none = torch.eye(module.embed_dim, dtype=leaves[0].dtype, device=leaves[0].device)
        ends = [None if b is None else b.detach().to(leaves[0]) for b in (module.bias_k, module.bias_v)]
        masks = {name: given.get(name) for name in ("key_padding_mask", "attn_mask")}
        if given["query"].dim() == 2 and masks["key_padding_mask"] is not None:
            masks["key_padding_mask"] = masks["key_padding_mask"].unsqueeze(0)
        context, _ = functional.multi_head_attention_forward(
            leaves[0], leaves[1], leaves[2], module.embed_dim, module.num_heads, None, None, ends[0], ends[1],
            module.add_zero_attn, module.dropout, none, None, training=call.training,
            key_padding_mask=masks["key_padding_mask"], need_weights=given.get("need_weights", True),
            attn_mask=masks["attn_mask"], use_separate_proj_weight=True, q_proj_weight=none, k_proj_weight=none,
            v_proj_weight=none, is_causal=given.get("is_causal", False),
        )  # fmt: skip
        return context


@dataclass(frozen=True, slots=True)
class ProjectionUse(LinearUse):
    """One projection of an attention module's calls."""

    module: nn.Module
    name: str
    reader: AttentionReader

    @property
    def ordered(self) -> bool:
        """Whether :meth:`pair` has the samples first, wherever the module has them: yes."""
        return True

    def enter(self) -> None:
        """Note what the call starts from."""
        self.reader.enter()

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Return the call."""
        return self.reader.read(arguments, keywords)

    def finish(self, kept: Any, grad: Tensor) -> None:
        """Work the call out, with the weights that it saw."""
        if self.name not in kept.pairs:
            self.reader.work_out(kept, grad)

    def count(self, kept: Any, grad: Tensor) -> int:
        """Return the number of samples."""
        if grad.dim() < 3:
            return 1
        return grad.shape[0] if self.reader.module.batch_first else grad.shape[1]

    def pair(self, kept: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projection's inputs and output gradients (B, T, E)."""
        self.finish(kept, grad)
        pair: tuple[Tensor, Tensor] = kept.pairs[self.name]
        return pair


class GatheredProjectionUse(ProjectionUse):
    """The same where the weights are whole during the passes only: worked out while they still are."""

    __slots__ = ()

    def arrived(self, kept: Any, grad: Tensor) -> None:
        """Work the call out: the backward pass is just there."""
        self.finish(kept, grad)


def _state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _generator_at(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Run with the random generator as it was; it goes on afterwards from where it is."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device.index or 0] if cuda else [], enabled=state is not None):
        if state is not None:
            torch.cuda.set_rng_state(state, device) if cuda else torch.set_rng_state(state)
        yield
