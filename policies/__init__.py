"""The decisions: pure policies over observations. Needs nothing but the standard library."""

from lipadvisor.policies import laws
from lipadvisor.policies.annealing import Annealing
from lipadvisor.policies.chain import Chain, Refiner, chain
from lipadvisor.policies.combine import clamp, cooldown, every, hold_when, pin, rate_limit, shadow
from lipadvisor.policies.contract import (
    Band,
    Decision,
    Knobs,
    Layer,
    Observation,
    Policy,
    Status,
    as_json,
    from_json,
    hold,
    restore_state,
)
from lipadvisor.policies.guard import Guard, guard
from lipadvisor.policies.initialization import Initialization
from lipadvisor.policies.lipschitz import Lipschitz
from lipadvisor.policies.lipschitz_budget import LipschitzBudget
from lipadvisor.policies.named import POLICIES, named_policy
from lipadvisor.policies.overfitting import Overfitting
from lipadvisor.policies.plateau import Plateau
from lipadvisor.policies.replay import replay
from lipadvisor.policies.schedules import Constant, Cosine, Linear, OneCycle, Step, WarmupStableDecay
from lipadvisor.policies.spectral_rate import SpectralRate
from lipadvisor.policies.warmup_end import WarmupEnd
from lipadvisor.policies.weight_decay import TotalDecay

__all__ = [
    "POLICIES",
    "Annealing",
    "Band",
    "Chain",
    "Constant",
    "Cosine",
    "Decision",
    "Guard",
    "Initialization",
    "Knobs",
    "Layer",
    "Linear",
    "Lipschitz",
    "LipschitzBudget",
    "Observation",
    "OneCycle",
    "Overfitting",
    "Plateau",
    "Policy",
    "Refiner",
    "SpectralRate",
    "Status",
    "Step",
    "TotalDecay",
    "WarmupEnd",
    "WarmupStableDecay",
    "as_json",
    "chain",
    "clamp",
    "cooldown",
    "every",
    "from_json",
    "guard",
    "hold",
    "hold_when",
    "laws",
    "named_policy",
    "pin",
    "rate_limit",
    "replay",
    "restore_state",
    "shadow",
]
