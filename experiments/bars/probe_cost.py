"""Bar: what measuring costs a step, in process CPU time, beside other tools for per-sample gradients.

Opacus and BackPACK stand in the table where they are installed (``pip install opacus backpack-for-pytorch``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lipadvisor.experiments.bars import Bar, BarSettings
from lipadvisor.experiments.bars.one_thread import one_thread
from lipadvisor.experiments.bars.probe_networks import WORKLOADS, Workload
from lipadvisor.experiments.bars.probe_rivals import RIVALS
from lipadvisor.experiments.bars.probe_timing import LEVELS, default_share, interleaved, scaling
from lipadvisor.trajectory import read_json, write_json

__all__ = ["run"]

_DEFAULT_BAR, _SETUP_BAR_S = 1.03, 2.0
_LAYERS = (10, 100, 1000)
_KINDS = ("matrices", "convolutions")
_DEFAULT_S = 25.0  # of a run with default settings: long enough that its first steps do not decide


def run(settings: BarSettings) -> Bar:
    """Measure the bar. Each network's figures are kept: an interrupted measurement goes on with the next one."""
    with one_thread():
        workloads = WORKLOADS[-2:] if settings.quick else WORKLOADS
        networks = {workload.name: _network(settings, workload) for workload in workloads}
        layers = _LAYERS[:2] if settings.quick else _LAYERS
        depths = {kind: {count: scaling(count, settings.seed, kind) for count in layers} for kind in _KINDS}
    checks = [check for workload in workloads for check in _network_checks(workload, networks[workload.name])]
    for kind, by_count in depths.items():
        least, *_, most = sorted(by_count)
        setup_s, more = by_count[most]["setup_s"], by_count[most]["syncs"] - by_count[least]["syncs"]
        checks.append((f"{most} {kind}, set-up s", setup_s, f"below {_SETUP_BAR_S:g}", setup_s < _SETUP_BAR_S))
        checks.append((f"synchronisations, {most} {kind} less {least}", more, "0", more == 0))
    figures = {
        "networks": networks,
        "layers": {kind: {str(n): d for n, d in ds.items()} for kind, ds in depths.items()},
    }
    return Bar("probe-cost", tuple(checks), figures, _table(networks, depths))


def _network(settings: BarSettings, workload: Workload) -> dict[str, Any]:
    """Return the figures of one network, taken now or kept from before."""
    kept = settings.out / "networks" / f"{workload.name}.json"
    if kept.exists() and not settings.quick:
        found: dict[str, Any] = read_json(kept)
        return found
    rounds, rival_rounds = (6, 2) if settings.quick else (_rounds_for(workload), 3)
    found = interleaved(workload, rounds, rival_rounds, settings.seed)
    settings.progress(f"{workload.name}: " + ", ".join(f"{level} {found[level]['ratio']:.3f}" for level in LEVELS))
    found["default"] = default_share(workload, 0.5 if settings.quick else _DEFAULT_S, settings.seed)
    settings.progress(f"{workload.name}: default {found['default']['share']:.3f}")
    if not settings.quick:
        _write(kept, found)
    return found


def _rounds_for(workload: Workload) -> int:
    """Return how many rounds: many of the quick networks, fewer of the slow ones."""
    return 150 if workload.name.startswith("digits") else 80 if workload.name.startswith("mlp") else 20


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)


def _network_checks(workload: Workload, found: dict[str, Any]) -> Iterator[tuple[str, float, str, bool]]:
    name = workload.name
    if workload.drift_bar is not None and workload.full_bar is not None:
        for level, what, bar in (
            ("noise", "drift and noise", workload.drift_bar),
            ("full", "everything", workload.full_bar),
        ):
            ratio = found[level]["ratio"]
            yield f"{name}: {what}, every step", ratio, f"at most {bar:g}", ratio <= bar
    share = found["default"]["share"]
    yield f"{name}: default settings", share, f"at most {_DEFAULT_BAR:g}", share <= _DEFAULT_BAR


def _table(networks: dict[str, dict[str, Any]], depths: dict[str, dict[int, dict[str, float]]]) -> str:
    kinds = (*LEVELS, *RIVALS)
    lines = [
        "A step with every step measured, over a plain one: ratio of medians [quartiles of single rounds], ms more"
    ]
    lines.append(f"{'network':20} {'plain ms':>9}" + "".join(f" {kind:>29}" for kind in kinds))
    for name, found in networks.items():
        cells = []
        for kind in kinds:
            one = found.get(kind)
            cells.append("-" if one is None else "{ratio:.3f} [{lower:.2f} {upper:.2f}] {extra_ms:+.2f}".format(**one))
        lines.append(f"{name:20} {found['plain_ms']:9.2f}" + "".join(f" {cell:>29}" for cell in cells))
    lines.append("")
    lines.append(f"{'network':20} {'default':>8} {'measured':>9} {'of steps':>9}")
    for name, found in networks.items():
        default = found["default"]
        lines.append(f"{name:20} {default['share']:8.3f} {default['measured']:9.0f} {default['steps']:9.0f}")
    lines.append("")
    lines += [f"{name}: no {tool} ({why})" for name, one in networks.items() for tool, why in one["absent"].items()]
    lines.append(f"{'layers':>20} {'set-up s':>9} {'step ms':>9} {'waits':>6}")
    for kind, by_count in depths.items():
        for n, d in by_count.items():
            lines.append(f"{n:7d} {kind:12} {d['setup_s']:9.2f} {d['step_ms']:9.1f} {d['syncs']:6.0f}")
    return "\n".join(lines)
