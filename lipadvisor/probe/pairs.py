"""Successive differences: the noise of a batch's gradient from two steps in a row, whatever couples the samples.

A measured step projects its gradient on the top pairs of the weights it leaves behind, and those pairs are kept. The
next step, measured or not, projects its own gradient on the same pairs. Half the square of the difference is an
unbiased estimate of the variance but for the drift of the mean over one step (von Neumann 1941, the mean square
successive difference); ``q`` of the difference is treated likewise. Each gradient carries its own preconditioner,
the one that contains it. Batches drawn without replacement need no correction here: inside an epoch their negative
correlation makes up for the smaller variance exactly, so that this, too, is the noise of independent draws.

Shapes: ``l`` layers of a pack, ``L`` of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipadvisor.probe.gradients import View
from lipadvisor.probe.kinds.parametrized import Computed
from lipadvisor.probe.pack import Pack, Refreshed
from lipadvisor.spectra import Resolvent
from lipadvisor.spectra.curvature import curvature_and_ratio
from lipadvisor.spectra.rows import Rows, quiet, rows, tensor

__all__ = ["PAIR_COLUMNS", "OpenPair", "close_pair", "empty_rows"]

PAIR_COLUMNS = ("pair", "pair_curvature")


@dataclass(frozen=True, slots=True)
class OpenPair:
    """A step's gradient as the weights after it see it, waiting for the next step's.

    Attributes:
        states: weights with their blocks, of each pack; None where there is none.
        views: of the gradient, of each pack.
        curved: whether ``q`` is asked for.
    """

    states: tuple[Refreshed | None, ...]
    views: tuple[View | None, ...]
    curved: bool

    def holds(self, packs: Sequence[Pack], exactly: bool = True) -> bool:
        """Return whether the weights are still those that the pair was opened on.

        Args:
            packs: as they are now.
            exactly: False allows for what computed weights do to themselves in each pass (a spectral norm's power
                iteration), as long as nobody wrote to their parameters.
        """
        return all(
            state is None or _stands(state, pack, exactly) for state, pack in zip(self.states, packs, strict=True)
        )


def _stands(state: Refreshed, pack: Pack, exactly: bool) -> bool:
    now = pack.versions()
    own = len(now)
    if not exactly:
        own -= sum(layer.source.buffers for layer in pack.layers if isinstance(layer.source, Computed))
    return state.versions[:own] == now[:own]


def close_pair(
    pack: Pack, state: Refreshed, first: View, second: View, resolvent: Resolvent | None = None
) -> tuple[Tensor, Rows | None]:
    """Return rows (l, 2): ``u' (G_2 - G_1) v / (s sqrt(2))`` and ``q(G_2 - G_1) / (2 s)``, nan if not asked for.

    Args:
        pack: the layers.
        state: weights that the pair was opened on.
        first: the gradient of the step before, as they see it.
        second: that of this step.
        resolvent: of the complement of ``state``; None makes one.

    Returns:
        The rows, and the ratio of the complement's part of ``q`` (l,), where that is asked for.
    """
    s_l = state.block.s_R[:, 0]
    half_l = (second.scalar_l - first.scalar_l) / (s_l * 2.0**0.5)
    form_l, ratio_l = torch.full_like(half_l, float("nan")), None
    if first.coimage_1N is not None and second.coimage_1N is not None:
        changes = second.image_1M - first.image_1M, second.coimage_1N - first.coimage_1N
        block = state.block.rows() if pack.short else state.block
        images = (rows(x) if pack.short else x for x in changes)
        with quiet():
            if resolvent is None:
                resolvent = pack.resolvent(pack.weights_before() if state is pack.old else state.kernel, block)
            q_lK, ratio_l = curvature_and_ratio(block, resolvent, *images)
        form_l = tensor(q_lK)[:, 0] / (2.0 * s_l)
    return torch.stack([half_l, form_l], dim=1), ratio_l


def empty_rows(pack: Pack) -> Tensor:
    """Return rows for a pack without a pair: nan."""
    weight = pack.layers[0].weight
    dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
    return torch.full((len(pack.layers), len(PAIR_COLUMNS)), float("nan"), dtype=dtype, device=weight.device)
