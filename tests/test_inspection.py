"""``Advisor.inspect``: values, record, cost, and that a training never notices it."""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lipadvisor import Advisor, load_run
from lipadvisor.dynamics import expansion_factor
from lipadvisor.inspection import QUANTITIES, Inspection, Inspector


def network(seed: int = 0, noisy: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        extra = [nn.BatchNorm1d(10), nn.Dropout(0.3)] if noisy else []
        return nn.Sequential(nn.Linear(6, 10), *extra, nn.Tanh(), nn.Linear(10, 3))


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        yield x, x[:, :3].argmax(1)


def optimizer_of(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=kind == "nesterov")


def loss_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: nn.functional.cross_entropy(model(x), y)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    advisor: Advisor | None,
    steps: int,
    look: Callable[[Tensor, Tensor], object] = lambda x, y: None,
    when: str = "after",
) -> None:
    for x, y in batches(steps):
        if when == "before":
            look(x, y)
        loss = loss_of(model)(x, y)
        loss.backward()
        if when == "amid":
            look(x, y)
        optimizer.step()
        optimizer.zero_grad()
        if advisor is not None:
            advisor.step(loss)
        if when == "after":
            look(x, y)


def shadow(model: nn.Module, optimizer: torch.optim.Optimizer, **more: object) -> Advisor:
    more = {"mode": "shadow", "interval": 1, "on_error": "raise", **more}
    return Advisor(model, optimizer, 40, **more)  # type: ignore[arg-type]


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    own = {name: p.detach().double() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in own.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: part.reshape(p.shape) for (n, p), part in zip(own.items(), flat.split(sizes), strict=True)}
        return nn.functional.cross_entropy(functional_call(model, parts, (x.double(),)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.reshape(-1) for p in own.values()]))


@pytest.mark.parametrize("kind", ["momentum", "nesterov", "adamw"])
def test_values_are_those_of_the_dense_matrices(kind: str) -> None:
    model = network()
    optimizer = optimizer_of(kind, model)
    with shadow(model, optimizer) as advisor:
        train(model, optimizer, advisor, 8)
        x, y = next(batches(1))
        found = advisor.inspect(loss_of(model), (x, y))
    assert found is not None
    H = dense_hessian(model, x, y)
    sharpness = float(torch.linalg.eigvalsh(H)[-1])
    assert found["sharpness"] == pytest.approx(sharpness, rel=1e-3)
    if kind == "adamw":
        states = [optimizer.state[p] for p in model.parameters()]
        vhat = torch.cat([s["exp_avg_sq"].reshape(-1) / (1 - 0.999 ** int(s["step"])) for s in states]).double()
        top = float(torch.linalg.eigvals((1 / (vhat.sqrt() + 1e-8))[:, None] * H).real.max())
        assert found["preconditioned_sharpness"] == pytest.approx(top, rel=1e-3)
        expected = expansion_factor("adamw", 0.9, 1e-2, top, 0.1)
    else:
        with pytest.raises(KeyError, match="preconditioned"):
            found["preconditioned_sharpness"]
        expected = expansion_factor("sgd", 0.9, 0.1, sharpness, nesterov=kind == "nesterov")
    assert found["expansion"] == pytest.approx(expected, rel=1e-3)
    J = torch.stack([torch.autograd.functional.jacobian(model, row) for row in x])
    assert found["local_log_norm"] == pytest.approx(float(torch.linalg.svdvals(J)[:, 0].max().log()), abs=1e-3)
    assert found["noise_scale"] > 0
    assert {reading.status for reading in found.readings} <= {"ok", "too_few_points"}


def test_it_is_recorded_kept_and_read_back(tmp_path: Path) -> None:
    model = network()
    optimizer = optimizer_of("adamw", model)
    seen: list[Inspection] = []
    with shadow(model, optimizer, out=tmp_path) as advisor:
        look = lambda x, y: seen.append(advisor.inspect(loss_of(model), (x, y), every=5))  # noqa: E731
        train(model, optimizer, advisor, 20, look)
        frame = advisor.trajectory.inspections
    seen = [one for one in seen if one is not None]
    assert [one.step for one in seen] == [1, 6, 11, 16]
    assert list(frame.quantity) == list(QUANTITIES) * 4
    assert list(frame.step) == [one.step for one in seen for _ in QUANTITIES]
    np.testing.assert_array_equal(frame.value, [one[name] for one in seen for name in QUANTITIES])
    stored = load_run(tmp_path).inspections.drop(columns=["trial", "attempt"])
    assert stored.equals(frame)
    assert frame.measure_s.min() > 0
    assert frame[frame.quantity == "sharpness"].residual.max() < 0.1


def test_the_calls_in_between_do_not_run_the_loss() -> None:
    model = network()
    optimizer = optimizer_of("momentum", model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(model)(*next(batches(1)))

    with shadow(model, optimizer) as advisor:
        train(model, optimizer, advisor, 20, lambda x, y: advisor.inspect(closure, every=10))
        frame = advisor.trajectory.inspections
    assert calls == 2
    assert set(frame.quantity) == {"sharpness", "expansion"}  # the rest needs a batch


def test_each_choice_of_quantities_has_its_own_interval() -> None:
    model = network()
    optimizer = optimizer_of("adamw", model)

    def look(x: Tensor, y: Tensor) -> None:
        advisor.inspect(loss_of(model), (x, y), every=4, quantities=("noise_scale",))
        advisor.inspect(loss_of(model), (x, y), every=10, quantities=("expansion",))

    with shadow(model, optimizer) as advisor:
        train(model, optimizer, advisor, 12, look)
        frame = advisor.trajectory.inspections
    assert list(frame[frame.quantity == "noise_scale"].step) == [1, 5, 9]
    assert list(frame[frame.quantity == "expansion"].step) == [1, 11]
    # what the expansion is read from is measured with it; nothing else is
    assert set(frame.quantity) == {"noise_scale", "expansion", "preconditioned_sharpness"}


@pytest.mark.parametrize("when", ["before", "amid", "after"])
@pytest.mark.parametrize("mode", ["shadow", "takeover"])
def test_the_training_and_its_measurements_are_bitwise_the_same(when: str, mode: str) -> None:
    ends, tables, states = [], [], []
    for looked in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = network(noisy=True)
            optimizer = optimizer_of("adamw", model)
            with shadow(model, optimizer, mode=mode) as advisor:
                look = (
                    (lambda x, y, a=advisor, m=model: a.inspect(loss_of(m), (x, y))) if looked else (lambda x, y: None)
                )
                train(model, optimizer, advisor, 6, look, when)
                frame = advisor.trajectory.observations
            ends.append({name: value.clone() for name, value in model.state_dict().items()})
            tables.append(frame.drop(columns=["overhead", "measure_s", "step_s"]))
            states.append(torch.get_rng_state())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    assert torch.equal(*states)
    assert tables[0].equals(tables[1])


def test_its_time_is_measurings_and_not_the_steps() -> None:
    model = network()
    optimizer = optimizer_of("momentum", model)

    def slow() -> Tensor:
        time.sleep(1.0)
        return loss_of(model)(*next(batches(1)))

    with shadow(model, optimizer) as advisor:
        train(model, optimizer, advisor, 3)
        before = advisor.overhead
        found = advisor.inspect(slow)
        train(model, optimizer, advisor, 1)
        rows = advisor.trajectory.observations.query("layer == '*' and step > 0")
        overhead = advisor.overhead
    assert found is not None
    assert found.measure_s >= 1.0
    assert rows.step_s.max() < 1.0
    assert overhead > max(before, 1.0 / (1.0 + 10 * rows.step_s.sum()))


class Rough(torch.autograd.Function):
    """Has no second derivative."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 2 * grad


def once(x: Tensor) -> Tensor:
    return Rough.apply(x)


@pytest.mark.parametrize("rough", [once, nn.functional.hardsigmoid])
def test_what_cannot_be_measured_is_said_and_the_training_goes_on(rough: Callable[[Tensor], Tensor]) -> None:
    model = network()
    optimizer = optimizer_of("momentum", model)
    advisor = shadow(model, optimizer, on_error="warn")
    x, y = next(batches(1))
    found = advisor.inspect(lambda x, y: nn.functional.cross_entropy(rough(model(x)), y), (x, y))
    assert found is not None
    status = {reading.quantity: reading.status for reading in found.readings}
    assert status["sharpness"] == status["expansion"] == "not_measured"
    assert status["local_log_norm"] == "ok"
    assert math.isnan(found["sharpness"])
    assert found["noise_scale"] > 0
    caught = advisor.errors
    assert caught == 1
    broken = advisor.inspect(lambda: 1 / 0)
    assert broken is not None
    assert advisor.errors == caught + 1
    train(model, optimizer, advisor, 8)
    assert advisor.errors == caught + 1
    bad = advisor.inspect(loss_of(model), (x * float("nan"), y))
    assert bad is not None
    assert {reading.status for reading in bad.readings} == {"non_finite"}
    assert advisor.errors == caught + 1
    advisor.close()


def test_a_resumed_run_goes_on_from_the_same_vectors() -> None:
    x, y = next(batches(1))
    values = []
    for resumed in (False, True):
        model = network()
        optimizer = optimizer_of("adamw", model)
        advisor = shadow(model, optimizer)
        train(model, optimizer, advisor, 5, lambda x, y: advisor.inspect(loss_of(model), (x, y), every=2))  # noqa: B023
        if resumed:
            file = io.BytesIO()
            torch.save([one.state_dict() for one in (model, optimizer, advisor)], file)
            advisor.close()
            file.seek(0)
            model = network(seed=4)
            optimizer = optimizer_of("adamw", model)
            advisor = shadow(model, optimizer)
            for target, state in zip((model, optimizer, advisor), torch.load(file, weights_only=True), strict=True):
                target.load_state_dict(state)
        assert advisor.inspect(loss_of(model), (x, y), every=2) is None
        found = advisor.inspect(loss_of(model), (x, y))
        assert found is not None
        values.append([(reading.quantity, reading.value, reading.residual) for reading in found.readings])
        advisor.close()
    assert str(values[0]) == str(values[1])


class Attending(nn.Module):
    """Embedding, attention and a recurrent layer, one of them recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 9)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        h = h + checkpoint(lambda z: self.attention(z, z, z)[0], self.norm(h), use_reentrant=False)
        return self.head(self.recurrent(h)[0])


@pytest.mark.parametrize("lowered", [False, True])
def test_attention_recurrence_checkpointing_and_autocast(lowered: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attending()
    ids = torch.randint(0, 9, (12, 5), generator=torch.Generator().manual_seed(0))

    def loss_fn(ids: Tensor, target: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            return nn.functional.cross_entropy(model(ids).flatten(0, 1), target.flatten())

    batch = {"ids": ids, "target": ids.roll(1, 1)}
    inspector = Inspector(model, torch.optim.SGD(model.parameters(), lr=0.1), raises=True)
    found = inspector.measure(0, loss_fn, batch, quantities=("sharpness", "noise_scale"))
    assert {reading.status for reading in found.readings} <= {"ok", "too_few_points"}
    direction = inspector.state_dict()["sharpness"]["vector"]

    def slope(length: float) -> float:  # of the loss along the eigenvector, without any second derivative
        parts = direction.split([p.numel() for p in model.parameters()])
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, part in zip(moved.parameters(), parts, strict=True):
                p.add_(part.reshape(p.shape), alpha=length)
        loss = nn.functional.cross_entropy(moved(ids).flatten(0, 1), batch["target"].flatten())
        slopes = torch.autograd.grad(loss, list(moved.parameters()))
        return float(sum((g.reshape(-1) @ part for g, part in zip(slopes, parts, strict=True)), torch.zeros(())))

    bend = (slope(1e-2) - slope(-1e-2)) / 2e-2
    assert found["sharpness"] == pytest.approx(bend, rel=0.1 if lowered else 0.01)


def test_bad_arguments_are_refused() -> None:
    model = network()
    with shadow(model, optimizer_of("momentum", model)) as advisor:
        with pytest.raises(ValueError, match="loss_fn"):
            advisor.inspect(torch.ones(()))  # type: ignore[arg-type]
        for quantities in ("sharpness", ("speed",)):
            with pytest.raises(ValueError, match="quantities"):
                advisor.inspect(lambda: torch.ones(()), quantities=quantities)
        with pytest.raises(ValueError, match="every"):
            advisor.inspect(lambda: torch.ones(()), every=0)


def test_a_data_parallel_model_trains_on(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ends = []
        for looked in (False, True):
            model = nn.parallel.DistributedDataParallel(network(noisy=True).eval())
            optimizer = optimizer_of("momentum", model)
            with shadow(model, optimizer, interval=1) as advisor:
                look = (lambda x, y, a=advisor, m=model: a.inspect(loss_of(m), (x, y))) if looked else lambda x, y: None
                train(model, optimizer, advisor, 4, look)
                if looked:
                    frame = advisor.trajectory.inspections
            ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert torch.equal(*ends)
        assert set(frame.status) <= {"ok", "too_few_points", "not_converged"}
    finally:
        torch.distributed.destroy_process_group()


def test_a_compiled_model_is_inspected_uncompiled() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    x, y = next(batches(1))
    optimizer = optimizer_of("momentum", model)
    with shadow(model, optimizer) as advisor:
        train(compiled, optimizer, advisor, 2)
        found = advisor.inspect(loss_of(compiled), (x, y))
    assert found is not None
    assert found["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(dense_hessian(model, x, y))[-1]), rel=1e-3)
