from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from training_loop import advised, network, optimizer_of, train


def run_with_checkpoint(kind: str, stop: int | None, tmp_path: Path) -> tuple[torch.Tensor, object]:
    model = network()
    optimizer = optimizer_of(kind, model)
    advisor = advised(model, optimizer)
    if stop is not None:
        train(model, optimizer, advisor, stop)
        path = tmp_path / "checkpoint.pt"
        torch.save({"model": model.state_dict(), "opt": optimizer.state_dict(), "advisor": advisor.state_dict()}, path)
        advisor.close()
        kept = torch.load(path, weights_only=True)
        model = network(seed=9)
        optimizer = optimizer_of(kind, model, lr=3.0)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["opt"])
        advisor = advised(model, optimizer)
        advisor.load_state_dict(kept["advisor"])
    train(model, optimizer, advisor, 40, start=stop or 0)
    tail = advisor.trajectory.observations.query("step > 25").drop(columns=["overhead", "measure_s", "step_s"])
    forecast = advisor.forecast(10).network
    advisor.close()
    end = torch.cat([p.detach().flatten() for p in model.parameters()])
    return end, (tail.reset_index(drop=True), forecast)


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_a_resumed_run_equals_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    whole, (rows, forecast) = run_with_checkpoint(kind, None, tmp_path)
    resumed, (resumed_rows, resumed_forecast) = run_with_checkpoint(kind, 20, tmp_path)
    assert torch.equal(whole, resumed)
    assert rows.equals(resumed_rows)
    assert np.array_equal(forecast.mean, resumed_forecast.mean)
    assert np.array_equal(forecast.std, resumed_forecast.std)


def test_state_of_another_policy_is_refused() -> None:
    model = network()
    state = advised(model, optimizer_of("sgd", model)).state_dict()
    with pytest.raises(ValueError, match="policy"):
        advised(model, optimizer_of("sgd", model), policy="constant").load_state_dict(state)


def test_the_checkpoint_is_small_and_loads_without_unpickling() -> None:
    model = network()
    optimizer = optimizer_of("adamw", model)
    with advised(model, optimizer) as advisor:
        train(model, optimizer, advisor, 30)
        file = io.BytesIO()
        torch.save(advisor.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)
    assert file.tell() < 5_000_000
