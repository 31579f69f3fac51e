"""Convolutions that repeat a matrix at every place, measured as that matrix, against their true dense operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from layer_twins import Batch, build, check_step, sample_gradients, take_step
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.probe.kinds.convolution import convolution_form
from lipadvisor.probe.kinds.repeated import repeats


def data(shape: tuple[int, ...], count: int = 4, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(samples, *shape, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 2, stride=2),  # patches
        nn.Tanh(),
        nn.Conv2d(5, 4, 1),
        nn.ELU(inplace=True),
        nn.Conv2d(4, 4, 1, stride=2),  # entries are left out
        nn.Tanh(),
        nn.ConvTranspose2d(4, 3, 2, stride=3, output_padding=1),  # gaps between the patches
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def sequences() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3, stride=4, padding="valid"),
        nn.Tanh(),
        nn.ConvTranspose1d(6, 5, 2, stride=2, dilation=3),  # patches run into each other, and share no entry
        nn.Tanh(),
        nn.ConvTranspose1d(5, 4, 1),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, (2, 1, 2), stride=(2, 1, 3)), nn.Tanh(), nn.Conv3d(4, 3, 1), nn.Flatten(), nn.LazyLinear(3)
    )


def groups() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 1, groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 6, 1, groups=6, padding=1),  # a gain for each channel
        nn.ELU(inplace=True),
        nn.Conv2d(6, 4, 2, stride=2, groups=2),  # patches
        nn.Tanh(),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 4, 1, groups=2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


class Returning(nn.Module):
    """A kernel that cuts patches out and one that puts them back: one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.paste = nn.Conv2d(2, 5, 2, stride=2), nn.ConvTranspose2d(5, 2, 2, stride=2)
        self.paste.weight = self.cut.weight
        self.head = nn.Linear(2 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.paste(torch.tanh(self.cut(x))).flatten(1))
        return y


class Sliding(nn.Module):
    """One kernel on patches and on windows that overlap: a convolution."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        kinds = {"groups": groups}
        self.patches, self.windows = nn.Conv2d(2, 2, 2, stride=2, **kinds), nn.Conv2d(2, 2, 2, **kinds)
        self.windows.weight = self.patches.weight
        self.head = nn.Linear(2 * 4 + 2 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.cat([self.patches(x).flatten(1), self.windows(x).flatten(1)], 1))
        return y


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (images, (2, 6, 6)),
    "sequences": (sequences, (2, 15)),
    "volumes": (volumes, (1, 4, 2, 5)),
    "groups": (groups, (4, 4, 4)),
    "padded": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 1, padding=2, stride=2), nn.Flatten(), nn.LazyLinear(3)),
        (2, 5, 5),
    ),
    "tied": (Returning, (2, 4, 4)),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
}


def input_sizes(model: nn.Module, x: Tensor) -> dict[nn.Module, tuple[int, ...]]:
    """Shape of what each convolution is given."""
    sizes: dict[nn.Module, tuple[int, ...]] = {}
    handles = [
        m.register_forward_pre_hook(lambda module, given: sizes.update({module: tuple(given[0].shape)}))
        for m in model.modules()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return sizes


def norms(module: nn.Module, size: tuple[int, ...], kernels: list[Tensor]) -> list[float]:
    """Largest singular values of the true operator with each of ``kernels``, decomposed whole."""
    operator = convolution_form(module).operator(size)  # type: ignore[arg-type]
    assert operator is not None
    unit = torch.eye(operator.inputs, dtype=torch.float64)
    return [float(torch.linalg.matrix_norm(operator.apply(kernel, unit), 2)) for kernel in kernels]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_terms_are_those_of_single_samples_and_statuses_are_ok(case: str, optimizer: str) -> None:
    make, shape = CASES[case]
    batches = data(shape)
    model = build(make, batches[0][0])
    probe = Probe(model, optimize := OPTIMIZERS[optimizer](model), interval=1)
    terms = check_step(model, optimize, probe, batches, statuses=frozenset({"ok"}))
    assert np.isfinite(terms.noise_curvature_L).all()
    assert all(layer.flat for layer in probe.layers) or case == "groups"
    assert not probe.following.sizes()  # none is needed
    assert not [skip for skip in probe.skipped if skip.name != "*.bias"]


@pytest.mark.parametrize("case", CASES)
def test_norm_derivative_and_curvature_are_those_of_the_true_operator(case: str) -> None:
    make, shape = CASES[case]
    batches = data(shape)
    model = build(make, batches[0][0])
    optimizer = OPTIMIZERS["momentum"](model)
    probe = Probe(model, optimizer, interval=1)
    sizes = input_sizes(model, batches[0][0])
    for step, batch in enumerate(batches):
        old = [layer.weight.detach().clone() for layer in probe.layers]
        terms = take_step(model, optimizer, probe, batch, step, nn.functional.cross_entropy)
    for index, layer in enumerate(probe.layers):
        if isinstance(layer.module, nn.Linear):
            continue
        new = layer.weight.detach()
        direction = (new - old[index]) / 0.02
        length = 1e-3 / float(direction.norm())
        kernels = [old[index] + direction * along for along in (-length, 0.0, length)]
        below, now, above = norms(layer.module, sizes[layer.module], kernels)
        assert terms.log_norm_L[index] == pytest.approx(np.log(now), abs=1e-9)
        assert terms.first_L[index] == pytest.approx((above - below) / (2 * length * now), rel=1e-4)
        bend = (above - 2 * now + below) / (length**2 * now)
        assert terms.curvature_L[index] == pytest.approx(bend, rel=1e-3, abs=1e-4)
        after = norms(layer.module, sizes[layer.module], [new])[0]
        assert terms.change_L[index] == pytest.approx(np.log(after / now), rel=1e-3, abs=1e-7)


def test_they_keep_their_kind_and_need_no_input_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ConvTranspose1d(8, 4, 1), nn.Conv2d(3, 8, 3, stride=2))
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [layer.kind for layer in probe.layers] == ["conv2d", "conv_transpose1d", "conv2d"]
    assert [layer.shape for layer in probe.layers] == [(8, 48), (4, 8), (8, 27)]
    assert probe.spectrum().status_L == ("ok", "ok", "not_converged")


@pytest.mark.parametrize("groups", [1, 2])
def test_a_kernel_that_slides_elsewhere_is_a_convolution(groups: int) -> None:
    batches = data((2, 4, 4))
    model = build(partial(Sliding, groups))
    probe = Probe(model, optimizer := OPTIMIZERS["momentum"](model), interval=1)
    check_step(model, optimizer, probe, batches)
    assert not probe.layers[0].form.matrix
    assert probe.following.sizes() == {"patches": (2, 4, 4)}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv1d(2, 3, 2, stride=2, dilation=3), True),  # reads 0 and 3, then 2 and 5
        (nn.Conv1d(2, 3, 2, stride=4, dilation=4), False),  # 0 and 4, then 4 and 8
        (nn.Conv2d(2, 4, 1, padding=1), True),  # places outside of the map see nothing
        (nn.Conv2d(2, 4, 1, padding=1, stride=2), False),  # a map of one entry would not be seen
        (nn.Conv2d(2, 4, 1, padding=1, padding_mode="circular"), False),  # an entry at two places
        (nn.Conv2d(2, 4, 1, groups=2), True),
        (nn.Conv2d(2, 4, (1, 3), stride=(1, 2)), False),
        (nn.Conv2d(2, 4, 1, padding="same"), True),
        (nn.ConvTranspose2d(2, 4, 2, stride=2, padding=1), False),  # ends of patches are cut off
    ],
)
def test_what_repeats_a_matrix(module: nn.Module, expected: bool) -> None:
    geometry = convolution_form(module).geometry  # type: ignore[arg-type]
    assert repeats(geometry) is expected
    size = (geometry.kernel_shape[0] if geometry.transposed else 2, *[9] * geometry.dimensions)
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(geometry.kernel_shape, generator=generator, dtype=torch.float64)
    blocks = kernel.flatten(1).unflatten(0, (geometry.groups, -1))
    exact, matrix = norms(module, size, [kernel])[0], float(torch.linalg.matrix_norm(blocks, 2).max())
    if expected:
        assert exact == pytest.approx(matrix, rel=1e-12)


def test_frames_flattened_into_the_batch_are_places_of_their_samples() -> None:
    """As many places as there are samples, in a layer whose batch is four times as long."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.head = nn.Conv2d(2, 3, 1), nn.Linear(3 * 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.each(x.flatten(0, 1))).flatten(1)
            z: Tensor = self.head(y).unflatten(0, x.shape[:2]).mean(1)
            return z

    batches = data((4, 2, 2, 3))
    model = build(Frames)
    optimizer = OPTIMIZERS["momentum"](model)
    probe = Probe(model, optimizer, interval=1)
    for step, batch in enumerate(batches[:-1]):
        take_step(model, optimizer, probe, batch, step, nn.functional.cross_entropy)
    grads = sample_gradients(model, probe, batches[-1], nn.functional.cross_entropy)
    W = probe.layers[0].value().clone()
    terms = take_step(model, optimizer, probe, batches[-1], len(batches) - 1, nn.functional.cross_entropy)
    U, s, Vh = torch.linalg.svd(W)
    shares = np.array([float(U[:, 0] @ g[0] @ Vh[0] / s[0]) for g in grads])
    assert terms.noise_LL[0, 0] == pytest.approx(shares.var(ddof=1) / len(shares), rel=1e-9)
    assert terms.status_L[0] == "ok"
