"""What became of a backward pass: whether it left anything in ``.grad``, and whether that is still there.

Of the passes within one optimizer step only those count whose gradients the optimizer is given. Others were asked for
by ``torch.autograd.grad`` (a monitor), or zeroed before the next pass: the first of the two passes of SAM (Foret et al.
2021), the generator's through a discriminator.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipadvisor.probe.kinds import TrackedLayer

__all__ = ["GradMark"]


@dataclass(frozen=True, slots=True)
class GradMark:
    """A layer's ``.grad`` at some moment, without its values.

    Attributes:
        place: address of its storage; None where there is none.
        version: its version counter.
        hidden: it is accumulated elsewhere (FSDP2), and nothing is known of it here.
    """

    place: int | None
    version: int
    hidden: bool

    @classmethod
    def of(cls, layer: TrackedLayer) -> GradMark:
        """Return the mark of ``layer`` as it is now."""
        if layer.shares:
            return cls(None, 0, True)
        grad = layer.weight.grad
        return cls(None, 0, False) if grad is None else cls(grad.data_ptr(), grad._version, False)

    def unchanged(self, layer: TrackedLayer) -> bool:
        """Return whether nothing has been added since."""
        return not self.hidden and self == GradMark.of(layer)

    def once(self, layer: TrackedLayer) -> bool:
        """Return whether one pass has added to what was there, and nothing else has been done to it since."""
        now = GradMark.of(layer)
        if self.hidden or now.place is None:
            return False
        return now.version == self.version + 1 if now.place == self.place else now.version == 0

    def zeroed(self, layer: TrackedLayer) -> bool:
        """Return whether what was there, with all that has been added since, is gone.

        One pass adds once; only where more was done are values looked at.
        """
        now = GradMark.of(layer)
        if self.hidden or now == self:
            return False
        if now.place is None:
            return True
        grad = layer.weight.grad
        return not self.once(layer) and grad is not None and not bool(grad.any())
