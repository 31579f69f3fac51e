"""Depth-scaled initialization: the last matrix of each residual branch starts smaller, the more branches are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lipadvisor.policies.checks import require_at_least_one, require_pairs
from lipadvisor.policies.contract import Observation
from lipadvisor.policies.initial_scale import Factors, InitialScale, named_once

__all__ = ["DepthScaledInitialization"]


@dataclass(frozen=True, slots=True)
class DepthScaledInitialization(InitialScale):
    """Before step 0, scales the last matrix of each residual branch by ``1 / sqrt(number of joins)``.

    Then the sum of all branches is as large as one, however deep the network. An observation does not know where
    branches are joined, so they are named here; ``lipadvisor.modules.depth_scaled`` finds them.

    Args:
        branches: (last matrix of a branch, number of branches joined on its stream >= 1), each matrix once.

    Raises:
        ValueError: a number is out of its range, or a matrix is named twice.

    References:
        Radford et al. 2019 (GPT-2), section 2.3; Zhang, Dauphin, Ma: Fixup, arXiv 1901.09321.
    """

    branches: tuple[tuple[str, int], ...]

    title: ClassVar[str] = "depth_scaled_initialization"
    reason: ClassVar[str] = "init:depth_scaled"

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", require_pairs("DepthScaledInitialization", "branches", self.branches))
        named_once("DepthScaledInitialization", "branches", (name for name, _ in self.branches))
        for _, joins in self.branches:
            require_at_least_one("DepthScaledInitialization", "branches", joins)

    def factors_for(self, observation: Observation) -> Factors:
        """Return the factor of each branch's last matrix, those at 1 left out."""
        return tuple((name, joins**-0.5) for name, joins in self.branches if joins > 1)
