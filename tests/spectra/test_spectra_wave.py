"""The plane wave that a convolution's largest change starts from, against dense operators of every geometry."""

from __future__ import annotations

import pytest
import torch

from lipadvisor.probe.response import update_norm
from lipadvisor.spectra import Conv2dOperator, ConvGeometry, ConvOperator
from lipadvisor.spectra.wave import wave_vectors

Operator = Conv2dOperator | ConvOperator


def of(kernel: tuple[int, ...], sizes: tuple[int, ...], **more: object) -> ConvOperator:
    """A convolution of ``kernel`` on maps of ``sizes``, padded by half a kernel where nothing else is said."""
    dims = len(sizes)
    half = tuple((k - 1) // 2 for k in kernel[2:])
    given: dict[str, object] = {"stride": (1,) * dims, "before": half, "after": half, "dilation": (1,) * dims, **more}
    geometry = ConvGeometry(kernel, **given)  # type: ignore[arg-type]
    channels = kernel[0] if geometry.transposed else kernel[1] * geometry.groups
    return ConvOperator(geometry, (channels, *sizes))


GEOMETRIES: dict[str, Operator] = {
    "1d": of((6, 5, 5), (24,)),
    "1d, circular": of((6, 5, 3), (24,), padding_mode="circular"),
    "1d, stride longer than dilation": of((6, 3, 8), (40,), stride=(3,), before=(2,), after=(4,)),
    "1d, dilation": of((6, 5, 3), (24,), before=(3,), after=(3,), dilation=(3,)),
    "2d": Conv2dOperator((5, 8, 8), (6, 5, 3, 3), (1, 1), (1, 1)),
    "2d, stride": Conv2dOperator((5, 9, 9), (6, 5, 3, 3), (2, 2), (1, 1)),
    "2d, groups": Conv2dOperator((8, 8, 8), (8, 2, 3, 3), (1, 1), (1, 1), (1, 1), 4),
    "2d, depthwise": Conv2dOperator((8, 8, 8), (8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 8),
    "2d, reflect, groups": of((6, 3, 3, 3), (7, 8), padding_mode="reflect", groups=2),
    "3d": of((4, 3, 3, 3, 3), (4, 5, 4)),
    "transpose": of((5, 6, 3, 3), (7, 7), transposed=True),
    "transpose, stride": of((5, 6, 4, 4), (6, 6), transposed=True, stride=(2, 2)),
    "transpose, stride, groups": of((6, 3, 5), (16,), transposed=True, stride=(2,), groups=2),
}


def layers_of(operator: Operator) -> int:
    """The general operator holds one layer at a time."""
    return 1 if isinstance(operator, ConvOperator) else 3


def kernels_and_sizes(operator: Operator, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernels as gradients are, sums of a few samples' with maps that vary slowly, and their largest values."""
    generator = torch.Generator().manual_seed(seed)
    kernels, sizes = [], []
    for _ in range(layers_of(operator)):
        x = torch.randn(4, *operator.input_shape, generator=generator, dtype=torch.float64).cumsum(-1)
        y = torch.randn(4, *operator.output_shape, generator=generator, dtype=torch.float64).cumsum(-1)
        kernels.append(operator.outer(y.flatten(1), x.flatten(1)))
        unit = torch.eye(operator.inputs, dtype=torch.float64)
        sizes.append(torch.linalg.matrix_norm(operator.apply(kernels[-1], unit), 2))
    return torch.stack(kernels), torch.stack(sizes)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_wave_says_nearly_how_large_a_convolution_is(name: str) -> None:
    operator = GEOMETRIES[name]
    for seed in range(3):
        kernel, size_l = kernels_and_sizes(operator, seed)
        wave_1N = wave_vectors(operator, kernel)
        torch.testing.assert_close(wave_1N.square().sum(-1), torch.ones(len(kernel), 1, dtype=torch.float64))
        reached_l = operator.apply(kernel, wave_1N).norm(dim=-1).squeeze(1)
        assert (reached_l <= size_l * (1 + 1e-12)).all()
        assert (reached_l >= 0.7 * size_l).all(), reached_l / size_l


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_size_of_an_update_is_right_without_a_vector_to_start_from(name: str) -> None:
    operator = GEOMETRIES[name]
    shares = []
    for seed in range(6):
        kernel, size_l = kernels_and_sizes(operator, seed)
        generator = torch.Generator().manual_seed(seed)
        start_KN = torch.randn(len(kernel), 3, operator.inputs, generator=generator, dtype=torch.float64)
        start_KN = torch.linalg.qr(start_KN.mT)[0].mT
        left_1M = torch.ones(len(kernel), 1, operator.outputs, dtype=torch.float64)
        found_l = update_norm(operator, kernel, left_1M, start_KN[:, :1], start_KN)[2]
        assert (found_l <= size_l * (1 + 1e-9)).all()
        shares += (found_l / size_l).tolist()
    assert min(shares) > 0.8, shares
    assert sorted(shares)[len(shares) // 4] > 0.9, shares  # on maps of 8 x 8 a few waves are as large


def test_of_a_circular_convolution_a_wave_is_a_singular_vector() -> None:
    operator = of((6, 5, 3), (24,), padding_mode="circular")
    kernel, _ = kernels_and_sizes(operator, 0)
    kernel[..., 1:] = 0.0  # no frequency stands out, and all are singular
    wave_1N = wave_vectors(operator, kernel)
    image_1M = operator.apply(kernel, wave_1N)
    back_1N = operator.adjoint(kernel, image_1M)
    back_1N = operator.adjoint(kernel, operator.apply(kernel, back_1N / back_1N.norm()))
    assert float(back_1N.norm().sqrt()) == pytest.approx(
        float(torch.linalg.matrix_norm(kernel[0, :, :, 0], 2)), rel=1e-2
    )


def test_vectors_that_are_nearly_the_same_do_not_lose_the_size_to_rounding() -> None:
    """A circular convolution leaves a wave a wave: start, wave and powers are one vector, in float32."""
    operator = of((12, 12, 3), (32,), padding_mode="circular")
    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        start_KN = torch.linalg.qr(torch.randn(operator.inputs, 3, generator=generator))[0].mT.unsqueeze(0)
        x, y = (
            torch.rand(4, operator.inputs, generator=generator),
            torch.randn(4, operator.outputs, generator=generator),
        )
        for _ in range(6):
            direction = operator.outer(y + 0.3 * torch.randn(y.shape, generator=generator), x)
            exact = torch.linalg.matrix_norm(operator.apply(direction, torch.eye(operator.inputs)), 2)
            left_1M = torch.ones(1, 1, operator.outputs)
            size_l, start_KN = update_norm(operator, direction.unsqueeze(0), left_1M, start_KN[:, :1], start_KN)[2:]
            found.append(float(size_l / exact))
    assert min(found) > 0.999, min(found)  # 0.16 where rows this close count as different
    assert max(found) < 1 + 1e-5


def test_a_kernel_of_zeros_has_no_wave() -> None:
    for operator in GEOMETRIES.values():
        wave_1N = wave_vectors(operator, torch.zeros(layers_of(operator), *operator.kernel_shape))
        assert wave_1N.shape == (layers_of(operator), 1, operator.inputs)
        assert torch.equal(wave_1N, torch.zeros_like(wave_1N))
