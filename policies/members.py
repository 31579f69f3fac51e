"""What combinators require of the policies that they are given."""

from __future__ import annotations

from typing import Any

from lipadvisor.policies.contract import Policy

__all__ = ["member"]


def member(owner: str, policy: Policy[Any]) -> Policy[Any]:
    """Return ``policy``.

    Raises:
        ValueError: it does not decide by itself: a name, a class, or a part of a chain.
    """
    decides = all(callable(getattr(policy, part, None)) for part in ("init", "decide"))
    if decides and not isinstance(policy, type):
        return policy
    hint = "; named_policy() makes one from a name" if isinstance(policy, str) else ""
    raise ValueError(f"{owner}(policy=...) must be an object with init() and decide(){hint}, got {policy!r}.")
