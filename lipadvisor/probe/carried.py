"""Steps of matrices without a solve: the complement of the block counts by a ratio that is carried from the last one.

Of the form ``q = block's part + complement's part`` the first is worked out at each step, from a block that is brought
up to the weights at each step. The second is ``sum_j c_j (p_j^2 + y_j^2) / s_1`` over the complement's singular pairs,
with ``c_j`` between ``1 / (1 + s_R / s_1)`` and ``1 / (1 - s_R / s_1)``: a mean of the ``c_j`` that a solve has found
stands for them in the steps that follow, ``p`` and ``y`` being those of each step.

Nothing is predicted then: the change of ``ln s_1`` is what the block says after the step.

Shapes: ``l`` layers of a pack, ``R`` block, ``K`` changes, ``M`` outputs, ``N`` inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lipadvisor.probe.pack import Pack, Refreshed
from lipadvisor.probe.strides import Strides
from lipadvisor.spectra import LinearOperator, TrackedBlock
from lipadvisor.spectra.curvature import Change
from lipadvisor.spectra.rows import Rows, rows, squares, tensor

__all__ = ["Carried", "CarriedResolvent", "CarriedSteps", "still_known"]

WAY = 0.06  # relative steps, added up, from one solve to the next, at most
LEAST = 0.4  # below what a ratio of anything can be: ``1 / (1 + s_R / s_1)``, a half at least


@dataclass(frozen=True, slots=True)
class CarriedResolvent:
    """The complement's part of forms, as a ratio.

    Attributes:
        s_1_l: of the layers.
        ratio_l: over ``(|p|^2 + |y|^2) / s_1``.
    """

    s_1_l: Rows
    ratio_l: Rows

    @classmethod
    def of(cls, block: TrackedBlock, ratio_l: Rows | None) -> CarriedResolvent | None:
        """Return the one of a block; None where no ratio is known."""
        return None if ratio_l is None else cls(block.s_R[:, 0], ratio_l)

    def both(self, turning: Change | None, p_KM: Rows, y_KN: Rows) -> tuple[Rows, Rows]:
        """Return the response ``z`` (l, 1, N), as little as is known of it, and the second line of q (l, K)."""
        y_1N = y_KN[..., :1, :] if turning is None else turning[1]
        return y_1N * (self.ratio_l / self.s_1_l)[:, None, None], self.forms(p_KM, y_KN)

    def forms(self, p_KM: Rows, y_KN: Rows) -> Rows:
        """Return the second line of q (l, K)."""
        return (squares(p_KM) + squares(y_KN)) * (self.ratio_l / self.s_1_l)[:, None]


@dataclass(slots=True)
class Carried:
    """What is known of a pack's complement since the last solve.

    Attributes:
        state: weights and block that it goes on from; of any other it says nothing.
        change_l: ratio of the weights' change.
        noise_l: ratio of the noise; None where none was asked for yet.
        age: measured steps since.
        way: relative steps since, added up.
    """

    state: Refreshed
    change_l: Rows
    noise_l: Rows | None = None
    age: int = 0
    way: float = 0.0

    @property
    def ratios(self) -> tuple[Rows, Rows | None]:
        """Both ratios."""
        return self.change_l, self.noise_l


@dataclass(slots=True)
class CarriedSteps:
    """Says at which steps a pack's complement is solved with; state of one run.

    Attributes:
        every: measured steps from one solve to the next, at most.
        holds: of each pack, by its layers.
    """

    every: int
    holds: dict[tuple[int, ...], Carried] = field(default_factory=dict)

    def due(self, pack: Pack, strides: Strides, curved: bool) -> Carried | None:
        """Return what stands for a solve in this step of the pack; None where there must be one.

        Args:
            pack: with ``old`` set.
            strides: the step.
            curved: whether the noise's curvature is asked for.
        """
        hold = self.holds.get(pack.indices)
        if hold is None or hold.state is not pack.old or hold.age + 1 >= self.every:
            return None
        if curved and hold.noise_l is None:
            return None
        return hold if hold.way + strides.relative(pack) < WAY else None

    def moved(self, pack: Pack, hold: Carried | None, change_l: Rows | None, strides: Strides) -> None:
        """Take down that a step was made; ``pack.new`` is set.

        Args:
            pack: whose step it was.
            hold: what stood for a solve; None where there was one.
            change_l: what that has found, see :class:`Carried`; None where the step was too long to tell.
            strides: the step.
        """
        new, last = pack.new, self.holds.pop(pack.indices, None)
        if new is None:
            return
        if hold is not None:
            way = hold.way + strides.relative(pack)
            self.holds[pack.indices] = replace(hold, state=new, age=hold.age + 1, way=way)
        elif self.every > 1 and change_l is not None and _can_be_carried(pack, new):
            ratio_l = still_known(pack, change_l, None if last is None else last.change_l)
            if ratio_l is not None:
                self.holds[pack.indices] = Carried(new, ratio_l)

    def note_noise(self, pack: Pack, ratio_l: Rows) -> None:
        """Take down the noise's ratio at the last solve."""
        hold = self.holds.get(pack.indices)
        if hold is not None and hold.age == 0:
            hold.noise_l = still_known(pack, ratio_l, hold.change_l)

    def state_dict(self, packs: Sequence[Pack]) -> list[list[Any] | None]:
        """Return what a resumed run goes on from, of each pack: numbers of its layers, age and way."""
        found = []
        for pack in packs:
            hold = self.holds.get(pack.indices)
            stands = hold is not None and hold.state is pack.new
            found.append(None if hold is None or not stands else [*map(_numbers, hold.ratios), hold.age, hold.way])
        return found

    def load_state_dict(self, packs: Sequence[Pack], state: Sequence[Sequence[Any] | None]) -> None:
        """Go on from :meth:`state_dict`, with the packs' own state loaded."""
        self.holds = {}
        for pack, saved in zip(packs, state, strict=False):  # of earlier versions: nothing
            if saved is None or pack.new is None:
                continue
            s_l = pack.new.block.s_R[:, 0]
            change_l, noise_l = (None if x is None else torch.tensor(x, dtype=s_l.dtype) for x in saved[:2])
            if pack.short:
                change_l, noise_l = (None if x is None else rows(x) for x in (change_l, noise_l))
            self.holds[pack.indices] = Carried(pack.new, change_l, noise_l, int(saved[2]), float(saved[3]))


def still_known(pack: Pack, found_l: Rows, last_l: Rows | None) -> Rows | None:
    """Return ratios to go on from; None where one is not known.

    A layer at rest (frozen, dead, without a learning rate) says nothing about its complement, nor does one of zeros.

    Args:
        pack: on a processor, with ``new`` set.
        found_l: what a solve has found.
        last_l: what stands for it in layers of which there was nothing to find.
    """
    assert pack.new is not None
    ratio_l = tensor(found_l)
    if pack.new.block.complete:
        chosen_l = torch.ones_like(ratio_l)
    else:
        known_l = (ratio_l > LEAST) & torch.isfinite(ratio_l)
        known_l &= torch.tensor([layer.weight.grad is not None for layer in pack.layers])  # else it is rounding's
        if bool(known_l.all()):
            return found_l
        if last_l is None:
            return None
        chosen_l = torch.where(known_l, ratio_l, tensor(last_l))
    return chosen_l if isinstance(found_l, Tensor) else rows(chosen_l)


def _numbers(ratio_l: Rows | None) -> list[float] | None:
    return None if ratio_l is None else [float(x) for x in ratio_l]


def _can_be_carried(pack: Pack, state: Refreshed) -> bool:
    """Return whether a ratio will do.

    Exactness is what float64 is for, and a device is not asked for its numbers. A convolution has so many values next
    to s_1 that the ratio hangs on the change, and its block does not keep up without what a solve says of the pair.
    """
    matrix = isinstance(pack.operator, LinearOperator) and pack.layers[0].form.matrix
    return matrix and state.kernel.device.type == "cpu" and state.kernel.dtype == torch.float32
