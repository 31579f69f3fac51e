"""The decisions: pure policies over observations. Needs nothing but the standard library."""

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
)

__all__ = ["Band", "Decision", "Knobs", "Layer", "Observation", "Policy", "Status", "as_json", "from_json", "hold"]
