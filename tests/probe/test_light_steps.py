"""Steps between two renewals of a block, beside singular values and per-sample gradients in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from per_sample import dense, sample_gradients
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.probe.light import LightSteps
from lipadvisor.terms import Terms

EVERY = 8
Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 150), nn.ReLU(), nn.Linear(150, 20)
    ),
    "convnet": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 20),
    ),
}


class Training:
    """A network on the digits, measured at every step."""

    def __init__(self, network: str, optimizer: str, level: str = "noise", every: int = EVERY, dtype=torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = NETWORKS[network]().to(dtype)
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        digits = load_digits()
        self.images = torch.tensor(digits.images, dtype=dtype).unsqueeze(1) / 16.0
        self.labels = torch.tensor(digits.target)
        self.generator = torch.Generator().manual_seed(0)
        self.probe = Probe(
            self.model, self.optimizer, level=level, interval=1, example_input=self.images[:2], renew_every=every
        )
        self.number = 0

    def step(self, before_update: Callable[[Tensor, Tensor], None] = lambda x, y: None) -> Terms:
        index = torch.randint(0, len(self.labels), (32,), generator=self.generator)
        x, y = self.images[index], self.labels[index]
        self.probe.arm(self.number)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.probe.before_update()
        before_update(x, y)
        self.optimizer.step()
        group = self.optimizer.param_groups[0]
        decay = group["weight_decay"] if isinstance(self.optimizer, torch.optim.AdamW) else 0.0
        self.probe.after_update({0: group["lr"]}, {0: decay})
        terms = self.probe.collect(self.number)
        self.number += 1
        assert terms is not None
        return terms

    def kernels(self) -> list[Tensor]:
        return [layer.weight.detach().double().clone() for layer in self.probe.layers]

    def top(self) -> np.ndarray:
        kernels = enumerate(self.kernels())
        return np.array([float(torch.linalg.matrix_norm(dense(self.probe, i, k), 2)) for i, k in kernels])


@pytest.fixture
def light_packs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The packs that made a light step, in turn."""
    made: list[tuple[int, ...]] = []
    step = LightSteps.step

    def counted(self: LightSteps, packs, strides, kind):
        made.extend(pack.indices for pack in packs)
        return step(self, packs, strides, kind)

    monkeypatch.setattr(LightSteps, "step", counted)
    return made


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_norms_and_predictions_follow_a_training(network: str, optimizer: str, light_packs: list) -> None:
    training = Training(network, optimizer, level="drift")
    off, sum_L, start_L, steps = [], 0.0, None, 120
    for number in range(steps):
        exact_L = np.log(training.top()) if number % 3 == 0 else None
        terms = training.step()
        start_L = terms.log_norm_L if start_L is None else start_L
        sum_L = sum_L + terms.change_L
        if exact_L is not None:
            off.append(np.abs(terms.log_norm_L - exact_L))
    assert np.quantile(off, 0.95) < 1e-4
    drift_L = np.abs(start_L + sum_L - np.log(training.top()))
    travelled_L = np.abs(start_L - np.log(training.top()))
    assert np.all(drift_L < 2e-3 + 0.005 * travelled_L)
    assert len(light_packs) > 0.3 * steps * len(training.probe._packs)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_curvature_is_near_that_of_renewed_blocks(network: str, optimizer: str, light_packs: list) -> None:
    """Its complement is carried, so that it is near and no more; a training is the same whatever measures it."""
    light, renewed = (Training(network, optimizer, "drift", every) for every in (EVERY, 1))
    made = [(light.step().curvature_L, renewed.step().curvature_L) for _ in range(60)]
    light_SL, exact_SL = (np.array(values) for values in zip(*made, strict=True))
    assert len(light_packs) > 0.2 * len(made) * len(light.probe._packs)
    assert np.all(np.median(np.abs(light_SL / exact_SL - 1.0), axis=0) < 0.1)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_projections_are_exact_given_the_pair(network: str, optimizer: str, light_packs: list) -> None:
    """``u' U v`` and the covariance of ``u' g_i v`` against float64, on the pair that was followed."""
    training = Training(network, optimizer)
    probe, model = training.probe, training.model
    names = [f"{layer.name}.weight" for layer in probe.layers]
    compared = 0
    for _ in range(30):
        old, seen, pairs = training.kernels(), {}, {}

        def look(x: Tensor, y: Tensor, seen=seen, pairs=pairs) -> None:
            seen.update(sample_gradients(model, lambda a, b: nn.functional.cross_entropy(a, b, reduction="sum"), x, y))
            for pack in probe._packs:
                for place, index in enumerate(pack.indices):
                    block = pack.old.block
                    pairs[index] = block.u_RM[place, 0].double(), block.v_RN[place, 0].double()

        before = len(light_packs)
        terms = training.step(look)
        for index in {index for indices in light_packs[before:] for index in indices}:
            u, v = pairs[index]
            matrix = dense(probe, index, old[index])
            u, v = u[: matrix.shape[0]], v[: matrix.shape[1]]
            s, lr = float(u @ matrix @ v), float(terms.lr_L[index])
            update = dense(probe, index, (probe.layers[index].weight.detach().double() - old[index]) / lr)
            scale = float(torch.linalg.matrix_norm(update, 2))
            assert terms.first_L[index] * s == pytest.approx(float(u @ update @ v), abs=2e-4 * scale)
            scalar_B = torch.stack([u @ dense(probe, index, g) @ v for g in seen[names[index]]]) / s
            variance = float(scalar_B.var() / len(scalar_B))
            assert terms.noise_LL[index, index] == pytest.approx(variance, rel=5e-3)
            size = float(terms.update_ratio_L[index]) * s
            assert 0.7 * scale < size < scale * (1 + 1e-3)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    ("level", "dtype", "every"), [("full", torch.float64, 8), ("drift", torch.float64, 8), ("noise", torch.float32, 1)]
)
def test_elsewhere_every_step_renews(level: str, dtype: torch.dtype, every: int, light_packs: list) -> None:
    light, plain = (
        Training("perceptron", "momentum", level, every, dtype),
        Training("perceptron", "momentum", level, 1, dtype),
    )
    for _ in range(12):
        np.testing.assert_array_equal(light.step().change_L, plain.step().change_L)
    assert not light_packs


def test_weights_that_are_written_to_are_renewed(light_packs: list) -> None:
    training = Training("perceptron", "momentum")
    for _ in range(12):
        training.step()
    with torch.no_grad():
        for p in training.model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * p.std())
    before, exact_L = len(light_packs), training.top()
    terms = training.step()
    assert len(light_packs) == before
    np.testing.assert_allclose(np.exp(terms.log_norm_L), exact_L, rtol=1e-3)


def test_a_resumed_run_renews_and_goes_on(light_packs: list) -> None:
    whole, first = Training("perceptron", "adamw"), Training("perceptron", "adamw")
    for _ in range(13):
        whole.step()
        first.step()
    resumed = Training("perceptron", "adamw")
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.probe.load_state_dict(first.probe.state_dict())
    resumed.generator.set_state(first.generator.get_state())
    resumed.number = first.number
    before = len(light_packs)
    a = resumed.step()
    assert len(light_packs) == before
    b = whole.step()
    np.testing.assert_allclose(a.log_norm_after_L, b.log_norm_after_L, rtol=0, atol=1e-4)
    np.testing.assert_allclose(a.first_L, b.first_L, rtol=0.02, atol=1e-3 * np.abs(b.first_L).max())


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_the_argument_is_checked(every: object) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="renew_every"):
        Probe(model, torch.optim.SGD(model.parameters(), lr=0.1), renew_every=every)  # type: ignore[arg-type]
