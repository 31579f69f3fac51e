"""A pack's weights with what is known of them, before and after a step.

Shapes: ``l`` layers of the pack, ``R`` block, ``r`` rows of a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lipadvisor.spectra import TrackedBlock
from lipadvisor.spectra.rows import Rows

__all__ = ["Marks", "Moved", "Refreshed"]

Marks = tuple[float, ...]  # change when weights are written to


@dataclass(slots=True)
class Refreshed:
    """Weights with their block.

    Attributes:
        kernel: the weights, (l, *kernel shape), float32 or better; empty from one measured step to the next, and of
            packs whose steps are known, see :meth:`lipadvisor.probe.pack.Pack.begin`.
        block: their tracked block.
        row_lC: s_1, s_2, the block's last value, sum of squares (see ``Ranks.shares``), residual of the top pair.
        length_lr: of each row of the kernels that are here.
        versions: of the parameters when they were copied; while these stand, nothing has been written to them.
    """

    kernel: Tensor
    block: TrackedBlock
    row_lC: Tensor
    length_lr: Tensor
    versions: Marks


@dataclass(slots=True)
class Moved:
    """Weights after a step, seen by the block of those before it.

    Attributes:
        kernel: the weights, which may be the parameter itself: nothing is written to it while this is looked at.
        image_RM: their images of the old block's right vectors; None where they have not been asked for.
        versions: as in :class:`Refreshed`.
    """

    kernel: Tensor
    image_RM: Rows
    versions: Marks
