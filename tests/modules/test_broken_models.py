"""Models broken on purpose: the right layer and cure are named, the broken model fails, the cured one trains."""

import copy
from typing import Any

import pytest
import torch
from broken import BROKEN, SLOWED, Broken, final, losses
from torch import nn

from lipadvisor.modules import Audit, Cured, apply_cures, audit

torch.set_num_threads(1)
LEARNT = 0.6  # of the loss of guessing
BEHIND = 1.5  # times the cured model's loss, and a tenth of guessing on top


def broken_model(case: Broken) -> nn.Module:
    if case.name.split("_")[0] in ("gpt2", "llama", "vit") or case.name in ("logits_gpt2", "logits_llama"):
        pytest.importorskip("transformers")
    if case.name in ("logits_neox", "logits_bloom"):
        pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = case.build()
    case.spoil(model)
    return model


def diagnosed(case: Broken, model: nn.Module) -> Audit:
    """Audit, and hold every finding to the place, the problem and the cure that are right."""
    result = audit(model, case.batch(), local=False, **dict(case.plan))
    assert result.findings
    for finding in result.findings:
        assert finding.module in case.where
        assert finding.problem == case.problem
        assert finding.cure.startswith(case.cure)
        assert finding.reason
        assert finding.source
    if case.problem == "attention_logits":
        assert {finding.module for finding in result.findings} == set(case.where)
    return result


def trained_both(case: Broken) -> tuple[float, float, Audit, Cured]:
    """Final losses of the broken and of the cured model: same weights but for the cure, same batches, same budget."""
    model = broken_model(case)
    result = diagnosed(case, model)
    uncured = copy.deepcopy(model)
    cured = apply_cures(model, result.findings, case.batch())
    assert cured.remaining == ()
    warmup = int(cured.plan[0].value or 0) if cured.plan else 0
    plan: dict[str, Any] = dict(case.plan) | ({"warmup_steps": warmup} if cured.plan else {})
    assert audit(model, case.batch(), local=False, **plan).findings == ()
    return final(losses(case, uncured)), final(losses(case, model, warmup)), result, cured


def test_there_are_twenty_of_four_classes() -> None:
    assert len(BROKEN) >= 20
    assert len({case.name for case in BROKEN + SLOWED}) == len(BROKEN + SLOWED)
    assert {case.problem for case in BROKEN} == {"init_scale", "vanishing", "post_norm", "attention_logits"}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_the_broken_model_fails_and_the_cured_one_trains(case: Broken) -> None:
    uncured, cured, _, _ = trained_both(case)
    assert cured < LEARNT, (uncured, cured)
    assert uncured > BEHIND * cured + 0.1, (uncured, cured)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOWED, ids=lambda case: case.name)
def test_where_a_normalisation_limits_the_harm_the_cured_model_is_ahead_and_the_reason_says_so(case: Broken) -> None:
    uncured, cured, result, _ = trained_both(case)
    assert "normalisation behind it limits the harm" in result.findings[0].reason
    assert cured < LEARNT
    assert cured < 0.9 * uncured < 0.9 * LEARNT, (uncured, cured)
