"""What an advisor says in the log, under the name ``lipadvisor``."""

from __future__ import annotations

import logging

from lipadvisor.probe import Probe

__all__ = ["log_unclosed", "log_what_is_owned"]

_log = logging.getLogger("lipadvisor")
_OWNS = {
    "takeover": "owns learning rate and weight decay of every parameter group; the optimizer's own do not matter",
    "cap": "limits the learning rate; the schedule and the weight decay stay the user's",
    "shadow": "records what it would do and touches nothing",
}


def log_what_is_owned(policy: str, mode: str, probe: Probe) -> None:
    """Say which knobs are the advisor's, and what is not measured."""
    _log.info("%s (%s) %s; measures %d layers", policy, mode, _OWNS[mode], len(probe.layers))
    if probe.skipped:
        by_reason: dict[str, list[str]] = {}
        for one in probe.skipped:
            by_reason.setdefault(one.reason, []).append(repr(one.name) if one.name else "the model itself")
        _log.info("not measured: %s", "; ".join(f"{', '.join(by_reason[why])}: {why}" for why in by_reason))


def log_unclosed(count: int) -> None:
    """Say, at the first of ``count``, that optimizer steps come without the advisor being told."""
    if count == 1:
        _log.warning(
            "an optimizer step came without Advisor.step() after the one before: it is not counted, and the schedule "
            "does not advance (said once; advisor.unclosed_steps counts them)"
        )
