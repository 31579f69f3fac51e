"""Checks an advisor's arguments before any work starts."""

from __future__ import annotations

from typing import Any

from lipadvisor.apply import MODES

__all__ = ["check_arguments"]


def check_arguments(
    total_steps: int | None,
    mode: str,
    snapshot_every: int | str | None,
    on_error: str,
    out: Any,
    sink: Any,
) -> None:
    """Check what ``Advisor`` was given, apart from what the probe and the policy check themselves.

    Raises:
        ValueError: names the argument, its rule and the value.
    """
    if total_steps is not None and (
        isinstance(total_steps, bool) or int(total_steps) != total_steps or total_steps < 1
    ):
        raise ValueError(f"Advisor(total_steps=...) must be an integer >= 1 or None, got {total_steps!r}.")
    if mode not in MODES:
        raise ValueError(f"Advisor(mode=...) must be one of {', '.join(MODES)}, got {mode!r}.")
    if snapshot_every not in (None, "auto") and not (isinstance(snapshot_every, int) and snapshot_every >= 1):
        raise ValueError(
            f"Advisor(snapshot_every=...) must be an integer >= 1, None or 'auto', got {snapshot_every!r}."
        )
    if on_error not in ("warn", "raise"):
        raise ValueError(f"Advisor(on_error=...) must be 'warn' or 'raise', got {on_error!r}.")
    if out is not None and sink is not None:
        raise ValueError("Advisor(out=..., sink=...): give one of them, not both.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
