"""The page of an audit: names that can be read, rows that can be found from the picture, advice that is complete."""

import re

import pytest
import torch
from torch import nn

from lipadvisor.modules import L2Attention, TransformerBlock, audit
from lipadvisor.modules.page import NAMED, gain_along_depth

torch.set_num_threads(1)


class Packed(nn.Module):
    """A name that is long, and a weight that stands in no row of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a_rather_long_name_of_a_part = nn.ModuleDict({"encoder": nn.Linear(8, 8)})
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(self.a_rather_long_name_of_a_part["encoder"](x))
        return y


def tokens() -> torch.Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def built(make: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def test_names_below_the_picture_are_cut_at_a_dot() -> None:
    _, sizes = gain_along_depth(audit(built(Packed), tokens(), local=False)).axes
    labels = [label.get_text() for label in sizes.get_xticklabels()]
    assert labels[0] == "…encoder"
    assert "layer.self_attn" in labels


def test_every_row_has_the_number_that_the_picture_counts_by() -> None:
    deep = nn.Sequential(*(part for _ in range(NAMED) for part in (nn.Linear(8, 8), nn.ReLU())))
    found = audit(deep, tokens(), local=False)
    page = found.to_html().partition("<h3>Modules</h3>")[2]
    numbers = re.findall(r"<tr[^>]*>\s*<td>(\d+)</td><td>([^<]*)</td>", page)
    assert [(int(n), name) for n, name in numbers] == list(enumerate(found.modules["module"]))
    _, sizes = gain_along_depth(found).axes
    assert sizes.get_xlabel().startswith("number of the module")


def test_a_finding_about_a_part_of_a_module_marks_its_row() -> None:
    model = built(Packed)
    with torch.no_grad():
        model.layer.self_attn.in_proj_weight[16:].mul_(300.0)  # the values
    found = audit(model, tokens(), local=False)
    named = {finding.module for finding in found.findings}
    assert "layer.self_attn.in_proj" in named
    marked = re.findall(r'class="flagged">\s*<td>\d+</td><td>([^<]*)</td>', found.to_html())
    assert "layer.self_attn" in marked


@pytest.mark.parametrize("steps", [None, 500])
def test_weight_decay_is_advised_with_and_without_a_horizon(steps: int | None) -> None:
    advice = {one.problem: one for one in audit(built(Packed), tokens(), local=False, total_steps=steps).advice}
    rate, decay = advice["learning_rate"].value, advice["weight_decay"]
    assert rate is not None
    if steps is None:
        assert decay.value is None
        assert decay.cure == f"decay {1.2 / rate:.3g} / T"
    else:
        assert decay.value == pytest.approx(1.2 / rate / steps)


def test_attention_is_advised_where_a_model_runs_its_own_and_not_where_it_has_a_constant() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.q(x) @ self.k(x).mT / 8**0.5).softmax(-1) @ self.v(x)

    def advised(model: nn.Module) -> set[str]:
        return {one.problem for one in audit(model, tokens(), local=False).advice}

    assert "attention" in advised(nn.Sequential(built(Own), nn.Linear(8, 3)))
    assert "attention" not in advised(TransformerBlock(8, L2Attention(8, 2), 16))
