import itertools

import pytest
import torch

from lipadvisor.experiments.workloads import WORKLOADS, Batches, Split, Workload

workloads = pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)


@workloads
def test_the_splits_share_no_row_and_cover_the_digits(workload: Workload) -> None:
    data = workload.load()
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1077, 360, 360]
    rows = [{tuple(row.tolist()) for row in part.inputs.flatten(1)} for part in parts]
    assert all(not (a & b) for a, b in itertools.combinations(rows, 2))
    assert all(set(part.targets.tolist()) == set(range(10)) for part in parts)


@workloads
def test_a_seed_names_one_model_and_no_global_state_moves(workload: Workload) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second, other = workload.model(3), workload.model(3), workload.model(4)
    assert torch.equal(state, torch.get_rng_state())
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


@workloads
def test_some_steps_of_the_given_optimizer_learn(workload: Workload) -> None:
    data, model = workload.load(), workload.model(0)
    optimizer = workload.optimizer(model)
    before = workload.evaluate(model, data.validation)
    for x, y in itertools.islice(workload.batches(data, 0), 60):
        workload.loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = workload.evaluate(model, data.validation)
    assert after.loss < 0.5 * before.loss
    assert after.accuracy > 0.7
    assert model.training


def _split(rows: int) -> Split:
    return Split(torch.arange(rows, dtype=torch.float32)[:, None], torch.arange(rows))


@pytest.mark.parametrize("position", [0, 1, 3, 4, 11])
def test_batches_resume_at_any_position(position: int) -> None:
    whole = [y.tolist() for _, y in itertools.islice(Batches(_split(17), 4, seed=5), 16)]
    rest = [y.tolist() for _, y in itertools.islice(Batches(_split(17), 4, seed=5, position=position), 16 - position)]
    assert rest == whole[position:]


def test_an_epoch_visits_no_row_twice_and_seeds_differ() -> None:
    batches = Batches(_split(17), 4, seed=5)
    epochs = [[int(y) for _, ys in itertools.islice(batches, 4) for y in ys] for _ in range(2)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert next(Batches(_split(17), 4, seed=6))[1].tolist() != epochs[0][:4]


@pytest.mark.parametrize(("size", "position"), [(0, 0), (18, 0), (4, -1)])
def test_impossible_batches_are_refused(size: int, position: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Batches(_split(17), size, seed=0, position=position)
