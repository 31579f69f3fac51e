"""Bar: noise-curvature and variance against the batch size, and what is left of drift and noise near convergence."""

from __future__ import annotations

from typing import Any

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.reproduce import Settings, convergence
from lipadvisor.experiments.reproduce.batch_size import measured_scaling

__all__ = ["run"]

_WITHIN = 0.1
_POSITIVE, _FADED = 0.99, 0.1


def run(settings: BarSettings) -> Bar:
    """Measure the bar."""
    sizes = settings.out / "batch-size"
    long = settings.out / "convergence"
    long.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Any] = {"seed": settings.seed, "quick": settings.quick, "progress": settings.progress}
    found = measured_scaling(Settings(sizes, **shared))
    checks: list[tuple[str, float, str, bool]] = []
    lines = [f"{'checkpoint':12} {'Var[Z], predicted':>18} {'kappa_Z':>9} {'Var[Z], observed':>17}"]
    for stage, row in found.items():
        own = row["exponents"]
        lines.append(f"{stage:12} {own['variance']:18.3f} {own['noise_curvature']:9.3f} {own['observed']:17.3f}")
        for kind in ("variance", "noise_curvature", "observed"):
            met = abs(own[kind] + 1.0) <= _WITHIN
            checks.append((f"exponent of {kind}, {stage}", own[kind], f"-1 +- {_WITHIN}", met))
    late = convergence.run(Settings(long, **shared)).figures
    positive, faded = late["kappa_positive_share"], late["drift_late_over_early"]
    checks.append(("share of kappa_Z > 0, last quarter", positive, f"above {_POSITIVE}", positive > _POSITIVE))
    checks.append(("drift, last quarter over first", faded, f"below {_FADED}", faded < _FADED))
    return Bar("scaling", tuple(checks), {"batch_size": found, "convergence": late}, "\n".join(lines))
