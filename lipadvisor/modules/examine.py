"""The audit of a model: one row for each module, alarms, advice, and the network's figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from lipadvisor.modules.advice import advise, heterogeneity, warmup_length
from lipadvisor.modules.composition import Composition
from lipadvisor.modules.diagnosis import VANISHED, Finding, diagnose, mild, stream, trunk
from lipadvisor.modules.flow import Flow, ModuleFlow, measure_flow
from lipadvisor.modules.initialization import dead_zone_rescue, layer_sizes, tied_heads
from lipadvisor.modules.local import local_lipschitz
from lipadvisor.modules.reading import Reading, read_modules
from lipadvisor.modules.running import arguments
from lipadvisor.modules.tracing import compose
from lipadvisor.modules.unusable import instances, not_finite

__all__ = ["Audit", "audit"]

ROUNDING = 1e-3  # nats by which float32 may put the measured constant above a tight bound


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        modules: one row per module, in order of execution: ``module``, ``kind``, ``parameters``, ``constant``,
            ``log_constant`` (nats), ``constant_kind``, ``condition``, ``source``, ``note``, ``weight``
            (dZ / d log constant),
            ``share`` (of Z, nats: weight x log constant), ``size`` (rms(W) sqrt(fan_in)), ``rms_in``, ``rms_out``,
            ``forward_gain``, ``backward_gain``, ``gradient_out``, ``gradient`` ("ok", "vanishes", "explodes").
            A module without an entry that computes something itself has a row too, of kind and constant_kind
            ``"none"``; ``note`` says why, as it does for modules that the batch did not reach.
        findings: alarms, the worst first; empty for a healthy model.
        advice: what the theory says about the knobs, the weightiest first.
        network: figures of the whole: ``log_bound`` (nats) and its ``bound_kind``, ``"upper"`` or, where not every
            operation was understood, ``"estimate"``, which is no bound; ``log_local`` (nats), ``method``, ``note``,
            ``heterogeneity`` (nats), ``forward_principle``, ``backward_principle`` and what they rest on.
        composition: the log bound as a function of the modules' constants.
    """

    modules: pd.DataFrame
    findings: tuple[Finding, ...]
    advice: tuple[Finding, ...]
    network: Mapping[str, Any]
    composition: Composition

    def to_json(self) -> str:
        """Return everything but the composition as JSON; numbers that are not finite become null."""
        data = {
            "network": dict(self.network),
            "findings": [asdict(finding) for finding in self.findings],
            "advice": [asdict(finding) for finding in self.advice],
            "modules": self.modules.to_dict("records"),
        }
        return json.dumps(_finite(data), indent=1, allow_nan=False)

    def to_html(self, title: str = "Audit") -> str:
        """Return one self-contained HTML page with a picture of gain along depth."""
        from lipadvisor.modules.page import render

        return render(self, title)

    def to_fragment(self) -> str:
        """Return what stands on that page, for a section of another one."""
        from lipadvisor.modules.page import fragment

        return fragment(self)

    def table(self) -> str:
        """Return the text that the command line prints."""
        from lipadvisor.modules.page import as_text

        return as_text(self)


def audit(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[[Tensor], Tensor] | None = None,
    warmup_steps: int | None = None,
    total_steps: int | None = None,
    beta2: float = 0.999,
    local: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Audit:
    """Audit a model before its first step. The model is left as it is.

    Args:
        model: any module. Dropout is off during the audit; batch normalisation uses the batch where the model is in
            training mode.
        batch: a tensor, a tuple of positional arguments, or a mapping of keyword arguments; a few samples are enough.
        loss: of the output that counts (logits, last hidden state, else the first float tensor). Without it a random
            cotangent stands in for its gradient, which gives every gain, but no scale for SGD's learning rate.
        warmup_steps: planned; a post-norm network with less than it needs is an alarm. ``None``: not judged.
        total_steps: planned, for the advice on warmup and weight decay.
        beta2: Adam's second-moment coefficient, in (0, 1).
        local: measure the local Lipschitz constant of the whole network (the dearest part).
        seed: of the random perturbation and cotangent.
        progress: called with a line of text now and then.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: an argument is out of range, the batch is empty, or no module that it reaches is known.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"audit(model=...) must be a torch.nn.Module, got {type(model).__name__}.")
    args, kwargs = arguments(batch)
    if any(isinstance(value, Tensor) and value.numel() == 0 for value in (*args, *kwargs.values())):
        raise ValueError("audit(batch=...) must hold at least one sample, got an empty tensor.")
    if not 0 < beta2 < 1:
        raise ValueError(f"audit(beta2=...) must be in (0, 1), got {beta2}.")
    for name, value, least in (("warmup_steps", warmup_steps, 0), ("total_steps", total_steps, 1)):
        if value is not None and value < least:
            raise ValueError(f"audit({name}=...) must be at least {least}, got {value}.")
    say = progress or (lambda line: None)
    say("constants of modules")
    readings = read_modules(model, batch, lambda name: say(f"constant of {name}"))
    if not any(reading.called for reading in readings.values()):
        raise ValueError(f"audit(model=...) must call a known module; {type(model).__name__} has none; see register().")
    found = {name: reading.constant for name, reading in readings.items() if reading.constant is not None}
    say("composing the bound")
    composition = compose(model, batch, found, progress=say)
    say("gains forward and backward")
    watched = {name: model.get_submodule(name) for name, reading in readings.items() if reading.called}
    flow = measure_flow(model, batch, watched, composition.sources, loss, seed, say)
    log_local = math.nan
    if local:
        say("local Lipschitz constant")
        large = sum(parameter.numel() for parameter in model.parameters()) > 20_000_000
        norm = local_lipschitz(model, batch, composition.sources, 5 if large else 12, 1 if large else 2, seed)
        log_local = math.log(norm.value) if norm.value > 0 else -math.inf
    kinds = {name: readings[name].kind for name in watched}
    sizes = layer_sizes(model)
    needed = warmup_length(composition, kinds, total_steps, beta2)
    broken = not_finite(model)
    findings = diagnose(
        flow, composition, found, sizes, kinds, warmup_steps, needed, tied_heads(model), broken, instances(model)
    )
    sized = {finding.module for finding in findings if finding.problem == "init_scale"}  # one word on each is enough
    advice = advise(flow, composition, kinds, dead_zone_rescue(model), total_steps, beta2, loss is not None)
    advice = tuple(one for one in advice if one.problem != "init_scale" or one.module not in sized)
    if not findings:
        said = mild(flow, composition, kinds, sizes, warmup_steps, needed)
        advice = tuple(sorted(advice + said, key=lambda one: -one.weight))
    modules = _frame(model, readings, composition, sizes, flow)
    say("done")
    return Audit(modules, findings, advice, _network(composition, flow, log_local, bool(broken)), composition)


def _frame(
    model: nn.Module,
    readings: Mapping[str, Reading],
    composition: Composition,
    sizes: Mapping[str, float],
    flow: Flow,
) -> pd.DataFrame:
    weights = composition.weights()
    line = trunk(composition)
    end = flow.modules[line[-1]].gradient_out if line and line[-1] in flow.modules else math.nan
    rows = []
    for name, reading in readings.items():
        constant = reading.constant
        record = flow.modules.get(name, ModuleFlow())
        weight = weights.get(name, 0.0)
        relative = record.gradient_out / end if end and end > 0 else math.nan
        rows.append(
            {
                "module": name,
                "kind": reading.kind,
                "parameters": sum(p.numel() for p in model.get_submodule(name).parameters()),
                "constant": math.nan if constant is None else constant.value,
                "log_constant": math.nan if constant is None else constant.log,
                "constant_kind": "none" if constant is None else str(constant.kind),
                "condition": "" if constant is None else constant.condition,
                "source": "" if constant is None else constant.source,
                "note": _note(reading, composition),
                "weight": weight,
                "share": weight * constant.log if weight > 0 and constant is not None else 0.0,
                "size": sizes.get(name, math.nan),
                "rms_in": record.rms_in,
                "rms_out": record.rms_out,
                "forward_gain": record.forward_gain,
                "backward_gain": record.backward_gain,
                "gradient_out": record.gradient_out,
                "gradient": "vanishes" if relative < VANISHED else "explodes" if relative > 1 / VANISHED else "ok",
            }
        )
    return pd.DataFrame(rows)


def _note(reading: Reading, composition: Composition) -> str:
    """Why a module has no constant, and what the bound makes of it."""
    if reading.constant is not None or not reading.called:
        return reading.note
    if composition.method == "export":
        return f"{reading.note}; the bound takes its operations one by one"
    return f"{reading.note}; the bound does not see it"


def _network(composition: Composition, flow: Flow, log_local: float, broken: bool) -> dict[str, Any]:
    line = [name for name in stream(composition) if name in flow.modules]
    gradients = [g for name in line if (g := flow.modules[name].gradient_in) > 0]
    sizes = [r for name in line if (r := flow.modules[name].rms_in) > 0]
    forward = math.log(max(sizes) / min(sizes)) if sizes else math.nan
    backward = math.log(max(gradients) / min(gradients)) if gradients else math.nan
    limit = -math.log(VANISHED)
    log_bound = math.nan if broken else composition.log_bound()
    below = log_local > log_bound + ROUNDING
    notes = (composition.note, "Z is below the measured local constant: not a bound" if below else "", flow.note)
    return {
        "log_bound": log_bound,
        "bound_kind": "upper" if composition.is_bound and not (below or broken) else "estimate",
        "log_local": log_local,
        "log_gap": log_bound - log_local,
        "method": composition.method,
        "note": "; ".join(note for note in notes if note),
        "sources": list(composition.sources),
        "heterogeneity": heterogeneity(flow),
        "places": len(line),
        "forward_spread": forward,
        "forward_principle": "kept" if forward < limit else "broken",
        "backward_spread": backward,
        "backward_principle": "kept" if backward < limit else "broken",
        "finite": flow.finite,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
