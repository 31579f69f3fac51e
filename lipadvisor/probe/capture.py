"""What a measured step leaves behind at each layer: its inputs and the gradients at its outputs.

Hooks are in place during measured steps only. They read; they never replace a tensor, so that the model computes what
it computes without them. A compiler that traces them sees functions that do nothing: a compiled model is left as it
is, and nothing is captured there.

Calls belong to *rounds*, from one backward pass to the next: accumulated batches are rounds of other samples. A layer
that activation checkpointing runs again during the backward pass is still in its round, and is counted once. Rounds
that left nothing in ``.grad`` do not count: :mod:`lipadvisor.probe.rounds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lipadvisor.probe.hook import Hook, transformed
from lipadvisor.probe.kinds import TrackedLayer, Use
from lipadvisor.probe.kinds.kind import kind_of, wide
from lipadvisor.probe.kinds.parametrized import Computed
from lipadvisor.probe.pair_sums import SMALL, PairProjection, PairSums
from lipadvisor.probe.rounds import GradMark
from lipadvisor.probe.sample_order import either_way, join, padded, samples_first
from lipadvisor.probe.samples import Call, Projected, Seen, SeenSamples
from lipadvisor.spectra.compact import CompactKernel, Sketch

__all__ = ["Capture"]


@dataclass(slots=True)
class Capture:
    """Hooks on the modules of layers; ``calls[l]`` are layer l's calls since they were put in, in order."""

    layers: Sequence[TrackedLayer]
    keep: bool = True  # keep activations and gradients, or only look at sizes
    root: nn.Module | None = None  # the whole model, whose first input says how many samples there are
    # Layers of which nothing is to be kept.
    reduce_by: dict[int, Sketch | CompactKernel | PairProjection] = field(default_factory=dict)
    added: dict[int, GradMark] = field(default_factory=dict)  # gradients that preconditioners were made of
    at_first: Callable[[], None] | None = None  # asked once, when the first gradient comes; may fill ``reduce_by``
    calls: list[list[Call]] = field(default_factory=list)
    input_shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # that the layers' operators are for
    seen_shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of the last training pass's inputs
    sized: tuple[int, ...] = ()  # layers whose operators depend on these
    always: bool = False  # look at sizes where no gradient is asked for, too
    spent_s: float = 0.0
    still: set[int] = field(default_factory=set)  # layers whose gradient was written to and is zero (dead units)
    fired: bool = False  # a layer's hook has run since they were put in
    asleep: bool = False  # hooks stay where they are and record nothing
    _sequences_first: bool = False
    _round: int = 0
    _graded: bool = False  # a gradient has come in this round
    _sizes: dict[int, int] = field(default_factory=dict)  # samples of the model's first input, by round
    _handles: list[RemovableHandle] = field(default_factory=list)
    _marks: list[list[tuple[int, GradMark]]] = field(
        default_factory=list
    )  # of each layer: .grad as its rounds found it

    def __post_init__(self) -> None:
        """Look for attention over sequences that come first: what is around it may have the samples second."""
        self.sized = tuple(i for i, layer in enumerate(self.layers) if layer.operator(None) is None)
        modules = {use.module for layer in self.layers for use in layer.uses}
        self._sequences_first = any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in modules)

    def attach(self, layers: bool = True, root: bool = True, sizes: bool = True) -> None:
        """Put the hooks in, with nothing recorded yet.

        Args:
            layers: those of the layers.
            root: the model's own, which counts samples.
            sizes: those that look at the sizes of maps alone, where the layers' are not wanted.
        """
        self.detach()
        self.clear()
        if self.root is not None and root:
            self._handles.append(self.root.register_forward_pre_hook(Hook(self._count), with_kwargs=True))
        for index, layer in enumerate(self.layers if layers else ()):
            for use in layer.uses:
                enter = getattr(use, "enter", None)  # what must be noted before a call
                if enter is not None:
                    self._handles.append(use.module.register_forward_pre_hook(Hook(self._entering(enter))))
                hook = Hook(self._hook(index, use))
                self._handles.append(use.module.register_forward_hook(hook, with_kwargs=True))
        for index, by in self.reduce_by.items() if layers and self.keep else ():
            weight = self.layers[index].weight
            if isinstance(by, PairProjection) and by.scale is not None and weight.requires_grad:  # not frozen
                self._handles.append(weight.register_post_accumulate_grad_hook(Hook(self._adding(index))))
        for index in () if layers or not sizes else self.sized:
            for use in self.layers[index].uses:
                look = Hook(self._looking(index, use))
                self._handles.append(use.module.register_forward_pre_hook(look, with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks out. What was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.at_first = None

    def finish(self) -> None:
        """Work out what hangs on the weights, while these are still the ones that the calls saw."""
        for index, layer in enumerate(self.layers):
            self._drop(index)
            if isinstance(layer.source, Computed):
                layer.source.keep()
        for calls in self.calls:
            for call in calls:
                finish = getattr(call.use, "finish", None)
                if finish is not None and call.grad_B is not None:
                    finish(call.kept, call.grad_B)

    def clear(self) -> None:
        """Forget what was recorded, but not the sizes of the inputs."""
        self.release()
        self._marks = [[] for _ in self.layers]
        self._sizes.clear()
        self.still.clear()
        self.added.clear()
        self._round, self._graded, self.fired = 0, False, False

    def release(self) -> None:
        """Let go of what the layers saw."""
        self.calls = [[] for _ in self.layers]

    @property
    def samples(self) -> int:
        """Samples that went into the model, as the first dimension of its first tensor says; 0 if that is not seen."""
        seen = {
            call.round
            for calls in self.calls
            for call in calls
            if call.grad_B is not None or call.projected is not None
        }
        return sum(size for turn, size in self._sizes.items() if not seen or turn in seen)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing of what the model is run for meanwhile, and lose nothing of what was recorded."""
        self.asleep = True
        try:
            yield
        finally:
            self.asleep = False

    def once(self, index: int) -> bool:
        """Return whether layer ``index`` has the gradient that one backward pass has left, and nothing else."""
        marks = self._marks[index]
        return len(marks) == 1 and marks[0][1].once(self.layers[index])

    def batch(self, index: int) -> tuple[Tensor, Tensor] | PairSums | SeenSamples | None:
        """Return what layer ``index`` saw in float32 or better; None where it saw nothing, or cannot be understood.

        Calls before one backward pass saw the same samples: what a sample did in them is added up. Calls before
        another one (accumulated gradients) saw other samples.

        Returns:
            Inputs (B, T, N) and output gradients (B, T, M) of a plain matrix, T places of each sample, or what they
            were reduced to; the samples of any other layer.
        """
        rounds: dict[int, list[Seen]] = {}
        if any(call.lost for call in self.calls[index]):
            return None
        if any(isinstance(call.projected, PairSums) for call in self.calls[index]):
            return self._sums(index)
        for call in self.calls[index]:
            if isinstance(call.projected, Projected):
                rounds.setdefault(call.round, []).append(Seen(call.projected, None, None))
            elif call.grad_B is not None:
                rounds.setdefault(call.round, []).append(Seen(call.use, call.kept, call.grad_B))
        if not rounds or any(len({seen.count for seen in calls}) > 1 for calls in rounds.values()):
            return None
        if not self.layers[index].flat:
            ordered = [[self._ordered(seen, turn) for seen in calls] for turn, calls in rounds.items()]
            seen_samples = tuple(tuple(seen for seen in calls if seen is not None) for calls in ordered)
            return None if any(None in calls for calls in ordered) else SeenSamples(seen_samples)
        pairs = []
        for turn, calls in rounds.items():
            one = [seen.use.pair(seen.kept, seen.grad) for seen in calls]
            if not getattr(calls[0].use, "ordered", False):
                if self._sequences_first and any(either_way(x, self._sizes.get(turn)) for x, _ in one):
                    return None
                one = [samples_first(pair, self._sizes.get(turn)) for pair in one]
            pairs.append(one[0] if len(one) == 1 else join(one, 1))
        longest = max(x.shape[1] for x, _ in pairs)
        return pairs[0] if len(pairs) == 1 else join([padded(pair, longest) for pair in pairs], 0)

    def _sums(self, index: int) -> PairSums | None:
        """Return what the calls of a plain matrix were reduced to; None where one was not."""
        rounds: dict[int, list[PairSums]] = {}
        for call in self.calls[index]:
            if isinstance(call.projected, PairSums):
                rounds.setdefault(call.round, []).append(call.projected)
            elif call.grad_B is not None:
                return None
        added = [PairSums.of_calls(calls) for calls in rounds.values()]
        return None if None in added else PairSums.of_rounds([one for one in added if one is not None])

    def _ordered(self, seen: Seen, turn: int) -> Seen | None:
        """Return a call with the samples first, where its kind takes any leading dimensions; None if unknown."""
        if not getattr(seen.use, "leading", False) or not isinstance(seen.kept, Tensor) or seen.kept.dim() < 3:
            return seen
        samples = self._sizes.get(turn)
        if self._sequences_first and either_way(seen.kept, samples):
            return None
        kept, grad = samples_first((seen.kept, seen.grad), samples)
        return seen if kept is seen.kept else replace(seen, kept=kept, grad=grad)

    def _count(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if transformed() or self.asleep or not torch.is_grad_enabled():
            return
        first = next((x for x in (*arguments, *keywords.values()) if isinstance(x, Tensor) and x.dim() > 0), None)
        if first is not None:
            turn = self._turn()
            self._sizes[turn] = max(self._sizes.get(turn, 0), first.shape[0])  # a step may look at other inputs beside

    def _turn(self) -> int:
        """Return the round of a call that is being made."""
        if self._graded and not _in_backward():
            self._round += 1
            self._graded = False
        return self._round

    def _entering(self, enter: Callable[[], None]) -> Any:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if not transformed() and not self.asleep:
                enter()

        return before

    def _looking(self, index: int, use: Use) -> Any:
        def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if not transformed() and not self.asleep:
                self._note_size(index, use.read(arguments, keywords))

        return before

    def _note_size(self, index: int, kept: Any) -> None:
        """Note the size of a layer's input, in training: an evaluation in between may have others."""
        if isinstance(kept, Tensor) and (self.always or torch.is_grad_enabled()):
            self.seen_shapes[index] = tuple(kept.shape)

    def _hook(self, index: int, use: Use) -> Any:
        def forward(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if transformed() or self.asleep:
                return
            started, self.fired = time.perf_counter(), True
            kept = use.read(arguments, keywords)
            if kept is not None:
                self._note_size(index, kept)
                result = output[0] if isinstance(output, tuple) else output
                if self.keep and isinstance(result, Tensor) and result.requires_grad:
                    self._record(index, use, kept, result)
            self.spent_s += time.perf_counter() - started

        return forward

    def _record(self, index: int, use: Use, kept: Any, output: Tensor) -> None:
        turn, again = self._turn(), _in_backward()
        calls = self.calls[index]
        # Checkpointing without reentrance: the gradient will come to the call of the forward pass, not to this one.
        mine = (call for call in calls if call.use is use)
        if again and any(
            call.grad_B is None and call.projected is None and not call.again and call.round == turn for call in mine
        ):
            return
        call = Call(use, kept, turn, again, by=self.reduce_by.get(index))
        calls.append(call)
        self._watch(index, call, output)

    def _watch(self, index: int, call: Call, output: Tensor) -> None:
        """Have the gradient at ``output`` added to the call.

        A view that is written to in place (an activation behind a layer over sequences) loses its own history, and
        its hooks with it: the gradient is then read where it reaches what the view is of, laid out alike.
        """
        base = output._base
        if base is None or base.grad_fn is None or base.numel() != output.numel() or not base.is_contiguous():
            output.register_hook(self._receiver(index, call))
            return
        receive, place, layout = self._receiver(index, call), base.output_nr, (output.shape, output.stride())

        def arrive(grads: tuple[Tensor | None, ...]) -> None:
            grad = grads[place]
            if grad is not None:
                receive(grad.contiguous().as_strided(*layout))

        base.grad_fn.register_prehook(arrive)

    def _receiver(self, index: int, call: Call) -> Any:
        def backward(grad: Tensor) -> None:
            self._graded = True
            if self.at_first is not None:
                self._begin()
            self._arrived(index, call.round)
            by = call.by
            if isinstance(by, PairProjection):
                if not self._paired(call, grad, by):
                    call.by = None  # it is kept
                elif by.scale is None:
                    self._reduce(call, grad.detach())
                    return
            elif by is not None:
                self._reduce(call, grad.detach())
                return
            call.grad_B = grad.detach() if call.grad_B is None else call.grad_B + grad.detach()
            arrived = getattr(call.use, "arrived", None)  # what cannot wait for the end of the pass
            if arrived is not None:
                started = time.perf_counter()
                arrived(call.kept, call.grad_B)
                self.spent_s += time.perf_counter() - started

        return backward

    def _begin(self) -> None:
        """Let what is to be known of the layers be found out while their weights are those of the passes."""
        started, asked = time.perf_counter(), self.at_first
        self.at_first = None
        if asked is not None:
            asked()
        for index, calls in enumerate(self.calls):
            for call in calls:
                call.by = call.by or self.reduce_by.get(index)
        self.spent_s += time.perf_counter() - started

    def _arrived(self, index: int, turn: int) -> None:
        """Take down how a round finds a layer's gradient, before anything is added to it."""
        marks = self._marks[index]
        if all(turn != known for known, _ in marks):
            self._drop(index)
            self.still.discard(index)
            marks.append((turn, GradMark.of(self.layers[index])))

    def _drop(self, index: int) -> None:
        """Forget the last round of a layer if it left nothing in ``.grad``, and all of them if that has been zeroed."""
        layer, marks = self.layers[index], self._marks[index]
        if not marks:
            return
        turn, found = marks[-1]
        gone: set[int] = set()
        if found.unchanged(layer):
            gone = {turn}
        elif found.zeroed(layer):
            gone = {known for known, _ in marks}
            self.still.add(index)
        if gone:
            marks[:] = [mark for mark in marks if mark[0] not in gone]
            self.calls[index] = [call for call in self.calls[index] if call.round not in gone]

    def _paired(self, call: Call, grad: Tensor, by: PairProjection) -> bool:
        """Return whether a call of a plain matrix is worth reducing, and its samples come first beyond doubt."""
        if not isinstance(call.kept, Tensor) or call.kept.numel() < SMALL or kind_of(wide(grad)) != kind_of(by.core):
            return False
        return not self._sequences_first and len(call.kept) == len(grad) == self._sizes.get(call.round)

    def _adding(self, index: int) -> Any:
        """Return what reduces a layer's calls once its gradient is complete, which a preconditioner is made of."""

        def after(parameter: Tensor) -> None:
            if index in self.added:  # another pass: the first one's preconditioner was not the step's
                for call in self.calls[index]:
                    call.lost = call.lost or call.projected is not None
            self.added[index] = GradMark.of(self.layers[index])
            for call in self.calls[index]:
                if call.by is not None and call.grad_B is not None:
                    self._reduce(call, call.grad_B)

        return after

    def _reduce(self, call: Call, grad: Tensor) -> None:
        """Take what is asked of a call while its input and gradient are at hand, and let go of both."""
        started, by = time.perf_counter(), call.by
        if call.projected is not None or by is None or kind_of(wide(grad)) != kind_of(by.core):
            call.lost = True  # the graph was kept for another pass, or the weights have changed their type or device
            return
        with torch.no_grad():
            if isinstance(by, PairProjection):
                call.projected = by.of(call.use.pair(call.kept, grad), call.round)
            else:
                call.projected = Projected.of(by, call.use, call.kept, grad)
        if call.projected is not None:
            call.kept = call.grad_B = None
        self.spent_s += time.perf_counter() - started


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
