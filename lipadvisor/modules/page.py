"""The audit as text and as one HTML page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from lipadvisor.modules.examine import Audit

__all__ = ["as_text", "fragment", "gain_along_depth", "render"]

_COLUMNS = (
    ("module", "module"),
    ("kind", "kind"),
    ("constant", "constant"),
    ("constant_kind", "of kind"),
    ("weight", "weight"),
    ("share", "share of Z"),
    ("size", "q"),
    ("rms_out", "rms out"),
    ("forward_gain", "gain fwd"),
    ("backward_gain", "gain bwd"),
    ("gradient", "gradient"),
)

MOST_LAYERS = 3  # whose initialization the printed text advises on; JSON and page have all
NAMED = 40  # up to so many modules stand by their names below the picture


def gain_along_depth(audit: Audit) -> Figure:
    """Draw each module's gains, and the sizes of signal and gradient, along the order of execution."""
    frame, x = audit.modules, np.arange(len(audit.modules))
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    gains, sizes = figure.subplots(2, 1, sharex=True)
    gains.plot(x, _positive(frame["constant"]), drawstyle="steps-mid", color="0.75", label="Lipschitz constant")
    gains.plot(x, _positive(frame["forward_gain"]), ".-", lw=0.8, ms=4, color="C0", label="gain forward")
    gains.plot(x, _positive(frame["backward_gain"]), ".-", lw=0.8, ms=4, color="C3", label="gain backward")
    sizes.plot(x, _positive(frame["rms_out"]), ".-", lw=0.8, ms=4, color="C0", label="rms of the output")
    gradient = _positive(frame["gradient_out"])
    sizes.plot(x, gradient / np.nanmax(gradient), ".-", lw=0.8, ms=4, color="C3", label="gradient, largest = 1")
    for axes in (gains, sizes):
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
        for finding in audit.findings:
            at = [i for i, name in enumerate(frame["module"]) if _under(name, finding.module)]
            if finding.module and at:
                axes.axvspan(min(at) - 0.5, max(at) + 0.5, color="C1", alpha=0.25, lw=0)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if len(frame) <= NAMED:
        sizes.set_xticks(x, [_short(name) for name in frame["module"]], rotation=90, fontsize=7)
    else:
        sizes.xaxis.get_major_locator().set_params(integer=True)
    which = "module, in order of execution" if len(frame) <= NAMED else "number of the module, in order of execution"
    sizes.set_xlabel(which + (" (findings shaded)" if audit.findings else ""))
    gains.set_ylabel("gain")
    sizes.set_ylabel("size")
    return figure


def _short(name: str, longest: int = 26) -> str:
    """The end of a name, cut at a dot where it is long."""
    if len(name) <= longest:
        return name or "(model)"
    parts = name.split(".")
    while len(parts) > 1 and len(".".join(parts)) >= longest:
        parts = parts[1:]
    return "\N{HORIZONTAL ELLIPSIS}" + ".".join(parts)[-longest:]


def _under(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.") or module.startswith(f"{name}.")


def _positive(column: Any) -> Any:
    values = np.asarray(column, dtype=float)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "audit"}):  # the same audit gives the same page
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = text.getvalue()[text.getvalue().index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    return re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", drawn)  # inline in HTML it needs none, and the page names no address


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3g}"


def _summary(audit: Audit) -> list[tuple[str, str]]:
    n = audit.network
    proper = n["bound_kind"] == "upper"
    return [
        (
            "log bound Z" if proper else "log estimate Z",
            f"{_number(n['log_bound'])} nats, by {n['method']}" + ("" if proper else "; not a bound"),
        ),
        ("local constant, log", _local(n)),
        ("heterogeneity", f"{_number(n['heterogeneity'])} nats between the layers' |G|/|W|"),
        (
            "forward principle",
            f"{n['forward_principle']}: sizes span {_number(n['forward_spread'])} nats over {n['places']} places",
        ),
        (
            "backward principle",
            f"{n['backward_principle']}: gradients span {_number(n['backward_spread'])} nats",
        ),
    ] + [(key, text) for key, text in (("note", str(n["note"])), ("without a constant", _without(audit))) if text]


def _local(network: Mapping[str, Any]) -> str:
    if math.isnan(network["log_local"]):
        return "not measured"
    return f"{_number(network['log_local'])} nats, from below; gap {_number(network['log_gap'])}"


def _without(audit: Audit) -> str:
    """How many modules have no constant, and the first few of them."""
    rows = [row for row in audit.modules.to_dict("records") if row["constant_kind"] == "none"]
    names = [row["module"] or "(model)" for row in rows if row["kind"] == "none"]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}; their rows say why" if names else ""


def what_to_do(audit: Audit) -> list[str]:
    """Return how the findings' cures are applied, a line each; empty without findings."""
    warmups = [finding for finding in audit.findings if finding.cure.startswith("warmup")]
    lines = []
    if len(warmups) < len(audit.findings):
        lines = [
            "to cure, before training: from lipadvisor.modules import apply_cures",
            "    undo = apply_cures(model, lipadvisor.audit(model, batch).findings, batch)",
            "it audits again after each round until nothing is left; undo() takes all back",
        ]
    return lines + [
        f"to cure: let the learning rate rise over at least {f.value:.0f} steps" for f in warmups if f.value
    ]


def as_text(audit: Audit) -> str:
    """Return summary, alarms, advice and the table of modules as aligned text."""
    lines = [f"{key:20} {value}" for key, value in _summary(audit)]
    lines += ["", f"findings: {len(audit.findings) or 'none'}"]
    for f in audit.findings:
        lines += [f"  ! {f.module or '(model)'}: {f.problem} -> {f.cure}", f"      {f.reason} [{f.source}]"]
    lines += [f"  {line}" for line in what_to_do(audit)]
    lines += ["", "advice:"]
    layers = [one for one in audit.advice if one.problem == "init_scale"]
    cut = layers[MOST_LAYERS:]
    for f in (one for one in audit.advice if one not in cut):
        lines += [f"  - {f.module or '(model)'}: {f.problem} -> {f.cure}", f"      {f.reason} [{f.source}]"]
    if cut:
        lines.append(f"  - and {len(cut)} more layers outside the dead zone: audit.advice, --json and --html have all")
    records = audit.modules.to_dict("records")
    rows = [[title for _, title in _COLUMNS]] + [_cells(row) for row in records]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    notes = ["note" if any(row["note"] for row in records) else "", *(row["note"] for row in records)]
    lines.append("")
    for row, note in zip(rows, notes, strict=True):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([*padded, note]).rstrip())
    return "\n".join(lines)


def _cells(row: dict[Any, Any]) -> list[str]:
    return [_number(row[key]) or "(model)" for key, _ in _COLUMNS]


_FRAGMENT = """<table class="summary">
{% for key, value in summary %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
<h3>Findings</h3>
{% if findings %}<table>
<tr><th>module</th><th>problem</th><th>cure</th><th>reason</th><th>source</th></tr>
{% for f in findings %}<tr class="alarm"><td>{{ f.module or "(model)" }}</td><td>{{ f.problem }}</td>
<td>{{ f.cure }}</td><td class="small">{{ f.reason }}</td>
<td class="small"><small>{{ f.source }}</small></td></tr>{% endfor %}
</table>
<pre>{% for line in to_do %}{{ line }}
{% endfor %}</pre>
{% else %}<p>None: nothing here keeps the model from training.</p>{% endif %}
<h3>Gain along depth</h3><figure>{{ picture | safe }}</figure>
<h3>Advice</h3><table>
<tr><th>about</th><th>module</th><th>advice</th><th>reason</th><th>source</th></tr>
{% for f in advice %}<tr><td>{{ f.problem }}</td><td>{{ f.module or "(model)" }}</td><td class="small">{{ f.cure }}</td>
<td class="small">{{ f.reason }}</td><td class="small"><small>{{ f.source }}</small></td></tr>{% endfor %}
</table>
<h3>Modules</h3>
<p><small>In order of execution. weight: dZ / d ln constant, what a nat here adds to the bound; share of Z: nats that
the module adds; q: rms(W) sqrt(fan_in), 1 keeps the variance of independent inputs (of a table: its rms); rms out: of
the output on the batch; gain: by how much a random perturbation grows on its way forward, a gradient on its way
back; gradient: vanishes or explodes where it is 1000 times smaller or larger than at the trunk's end.</small></p>
<div class="wide"><table>
<tr><th>#</th>{% for title in titles %}<th>{{ title }}</th>{% endfor %}<th>holds</th></tr>
{% for row in rows %}<tr{% if row.flagged %} class="flagged"{% endif %}>
<td>{{ loop.index0 }}</td>{% for cell in row.cells %}<td>{{ cell }}</td>
{% endfor %}<td class="small"><small>{{ row.condition }}</small></td></tr>
{% endfor %}</table></div>
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px; width: 100% }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #e4e4e4; vertical-align: top }
.wide th { position: sticky; top: 0; background: #fff }
.summary th { white-space: nowrap; width: 1%; padding-right: 2rem }
.alarm td:first-child { border-left: 4px solid #d9822b }
.flagged { background: #fdf1e3 } small { color: #666 } figure { margin: 0 } svg { width: 100%; height: auto }
</style></head><body>
<h1>{{ title }}</h1>
{{ body | safe }}</body></html>
"""


def fragment(audit: Audit) -> str:
    """Return the page's content alone, without a style of its own, to stand in a section of another page."""
    names, at = set(audit.modules["module"]), {finding.module for finding in audit.findings}
    flagged = at | {name for name in names for module in at - names - {""} if _under(name, module)}
    rows = [
        {
            "cells": _cells(row),
            "condition": row["note"] or row["condition"] or row["source"],
            "flagged": row["module"] in flagged,
        }
        for row in audit.modules.to_dict("records")
    ]
    template = jinja2.Environment(autoescape=True).from_string(_FRAGMENT)
    return template.render(
        summary=_summary(audit),
        findings=audit.findings,
        advice=audit.advice,
        to_do=what_to_do(audit),
        picture=_svg(gain_along_depth(audit)),
        titles=[title for _, title in _COLUMNS],
        rows=rows,
    )


def render(audit: Audit, title: str) -> str:
    """Return the page: nothing is loaded from elsewhere."""
    return jinja2.Environment(autoescape=True).from_string(_PAGE).render(title=title, body=fragment(audit))
