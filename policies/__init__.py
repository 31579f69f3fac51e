"""The decisions: pure policies over observations. Needs nothing but the standard library."""

from lipadvisor.policies import laws
from lipadvisor.policies.annealing import Annealing
from lipadvisor.policies.attended import Attended, OrderBox, OrderFile, Orders, attended
from lipadvisor.policies.attention import AttentionGuard
from lipadvisor.policies.averaging import Averaging
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
from lipadvisor.policies.depth_scaled_initialization import DepthScaledInitialization
from lipadvisor.policies.forecast_budget import ForecastBudget
from lipadvisor.policies.freeze import Freeze, Veto, freeze, veto
from lipadvisor.policies.greedy import Greedy
from lipadvisor.policies.groups import PerGroup, per_group
from lipadvisor.policies.guard import Guard, guard
from lipadvisor.policies.initialization import Initialization
from lipadvisor.policies.lead_time import LeadTimeGuard
from lipadvisor.policies.lipschitz import Lipschitz
from lipadvisor.policies.lipschitz_budget import LipschitzBudget
from lipadvisor.policies.median_rate import MedianRate
from lipadvisor.policies.named import POLICIES, named_policy
from lipadvisor.policies.overfitting import Overfitting
from lipadvisor.policies.planned_initialization import PlannedInitialization
from lipadvisor.policies.plateau import Plateau
from lipadvisor.policies.portfolio import Portfolio, portfolio
from lipadvisor.policies.predictive import Predictive
from lipadvisor.policies.replay import replay
from lipadvisor.policies.schedules import Constant, Cosine, Linear, OneCycle, Step, WarmupStableDecay
from lipadvisor.policies.shock import ShockNotice
from lipadvisor.policies.spectral_cap import SpectralCap, UpdateCap
from lipadvisor.policies.spectral_initialization import SpectralInitialization
from lipadvisor.policies.spectral_rate import SpectralRate
from lipadvisor.policies.warmup_end import WarmupEnd
from lipadvisor.policies.weight_decay import TotalDecay

__all__ = [
    "POLICIES",
    "Annealing",
    "Attended",
    "AttentionGuard",
    "Averaging",
    "Band",
    "Chain",
    "Constant",
    "Cosine",
    "Decision",
    "DepthScaledInitialization",
    "ForecastBudget",
    "Freeze",
    "Greedy",
    "Guard",
    "Initialization",
    "Knobs",
    "Layer",
    "LeadTimeGuard",
    "Linear",
    "Lipschitz",
    "LipschitzBudget",
    "MedianRate",
    "Observation",
    "OneCycle",
    "OrderBox",
    "OrderFile",
    "Orders",
    "Overfitting",
    "PerGroup",
    "PlannedInitialization",
    "Plateau",
    "Policy",
    "Portfolio",
    "Predictive",
    "Refiner",
    "ShockNotice",
    "SpectralCap",
    "SpectralInitialization",
    "SpectralRate",
    "Status",
    "Step",
    "TotalDecay",
    "UpdateCap",
    "Veto",
    "WarmupEnd",
    "WarmupStableDecay",
    "as_json",
    "attended",
    "chain",
    "clamp",
    "cooldown",
    "every",
    "freeze",
    "from_json",
    "guard",
    "hold",
    "hold_when",
    "laws",
    "named_policy",
    "per_group",
    "pin",
    "portfolio",
    "rate_limit",
    "replay",
    "restore_state",
    "shadow",
    "veto",
]
