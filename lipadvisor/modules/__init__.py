"""What is known of each module before the first step: Lipschitz constants, Jacobians, bounds of whole networks, advice.

constant_of(module, *inputs)      Lipschitz constant of one module, with its kind and condition
jacobian_of(module, x)            analytic Jacobian at one sample
register(kind, Entry(...))        the same for a module of your own
"""

from lipadvisor.modules import activations, attention, blocks, distance, linear, normalization, pooling, recurrent
from lipadvisor.modules.attention import DotProductAttention, L2Attention, ScaledCosineAttention
from lipadvisor.modules.blocks import DropPath, FeedForward, Residual, ResNetBlock, TransformerBlock
from lipadvisor.modules.composition import Composition
from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.cures import Cured, apply_cures
from lipadvisor.modules.diagnosis import Finding
from lipadvisor.modules.examine import Audit, audit
from lipadvisor.modules.initialization import InitPlan, Undo, dead_zone_rescue, depth_scaled, lsuv, spectral
from lipadvisor.modules.local import local_lipschitz
from lipadvisor.modules.normalization import CenterNorm
from lipadvisor.modules.reading import constants
from lipadvisor.modules.registry import Entry, constant_of, find, jacobian_of, no_entry, register, registered
from lipadvisor.modules.tracing import compose

__all__ = [
    "Audit",
    "CenterNorm",
    "Composition",
    "Constant",
    "Cured",
    "DotProductAttention",
    "DropPath",
    "Entry",
    "FeedForward",
    "Finding",
    "InitPlan",
    "Kind",
    "L2Attention",
    "ResNetBlock",
    "Residual",
    "ScaledCosineAttention",
    "TransformerBlock",
    "Undo",
    "apply_cures",
    "audit",
    "compose",
    "constant_of",
    "constants",
    "dead_zone_rescue",
    "depth_scaled",
    "find",
    "jacobian_of",
    "local_lipschitz",
    "lsuv",
    "no_entry",
    "register",
    "registered",
    "spectral",
]
_RULES = (
    activations,
    attention,
    blocks,
    distance,
    linear,
    normalization,
    pooling,
    recurrent,
)  # importing them registers the entries
