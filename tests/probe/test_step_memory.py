"""What a measured step holds beside a plain one: counted by storages, the same in each run, in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.experiments.bars.live_storages import LiveStorages
from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

BATCH = 64
MANY = 512  # of samples of matrices, so that what they are seen by weighs more than blocks of vectors


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 160))


def tokens() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 32))


def maps() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def coupled() -> nn.Module:
    layers = list(maps())
    layers[1], layers[3] = (nn.Sequential(nn.BatchNorm2d(16), nn.ReLU()) for _ in range(2))
    return nn.Sequential(*layers)


INPUTS = {matrices: (MANY, 512), tokens: (BATCH, 64, 32), maps: (BATCH, 3, 16, 16), coupled: (BATCH, 3, 16, 16)}


@dataclass(frozen=True)
class Counted:
    """Bytes alive in the last step of a training, moment by moment."""

    passes: int
    after_passes: int
    update: int
    between: int
    measured: bool
    blocks: int  # of vectors, and updates followed
    let_go: bool  # no block but one, no copy of a kernel


class Steps:
    """A training whose tensors are counted, moment by moment of its last step."""

    def __init__(self, network: Callable[[], nn.Module], optimizer: str, level: str | None, count: int) -> None:
        self.passes = self.after_passes = self.update = self.between = 0
        self.found: Terms | None = None
        with LiveStorages() as seen:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = network()
            options = {"lr": 0.01, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.001}
            own = getattr(torch.optim, optimizer)(model.parameters(), **options)
            self.probe = None if level is None else Probe(model, own, level=level, interval=1)
            generator = torch.Generator().manual_seed(0)
            for step in range(count):
                x = torch.randn(*INPUTS[network], generator=generator)
                seen.restart()
                self.step(model, own, x, step, seen)

    def counted(self) -> Counted:
        packs = [] if self.probe is None else [pack for pack in self.probe._packs if pack.new is not None]
        blocks = [pack.new.block for pack in packs]
        held = [x for block in blocks for x in (block.u_RM, block.s_R, block.v_RN)]
        held += [pack.update_KN for pack in packs if pack.update_KN is not None]
        let_go = all(pack.old is None and not pack.new.kernel.numel() for pack in packs)
        own = sum(4 * x.numel() for x in held)
        moments = self.passes, self.after_passes, self.update, self.between
        return Counted(*moments, self.found is not None, own, let_go)

    def step(self, model: nn.Module, own: torch.optim.Optimizer, x: Tensor, step: int, seen: LiveStorages) -> None:
        if self.probe is not None:
            self.probe.arm(step)
        own.zero_grad()
        model(x).square().mean().backward()
        self.passes = seen.peak_bytes
        seen.restart()
        self.after_passes = seen.live_bytes
        if self.probe is not None:
            self.probe.before_update()
        own.step()
        if self.probe is not None:
            self.probe.after_update({0: own.param_groups[0]["lr"]}, {0: 0.0})
            self.found = self.probe.collect(step)
        self.update = seen.peak_bytes
        self.between = seen.look()


def train(network: Callable[[], nn.Module], optimizer: str, level: str | None, count: int) -> Counted:
    return Steps(network, optimizer, level, count).counted()


Trained = Callable[..., Counted]


@pytest.fixture(scope="module")
def trained() -> Iterator[Trained]:
    def run(*how: object) -> Counted:
        return process.submit(train, *how).result()  # type: ignore[arg-type]

    process: Executor
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield run


def weights(network: Callable[[], nn.Module]) -> int:
    return 4 * sum(p.numel() for p in network().parameters())


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("network", "optimizer"), [(matrices, "SGD"), (tokens, "SGD"), (maps, "SGD"), (coupled, "SGD")]
)
def test_nothing_that_the_layers_saw_outlives_the_backward_pass(
    network: Callable[[], nn.Module], optimizer: str, count: int, trained: Trained
) -> None:
    plain, measured = (trained(network, optimizer, level, count) for level in (None, "full"))
    seen = plain.passes - plain.after_passes  # what the passes kept, and a plain step has let go of
    assert measured.after_passes - plain.after_passes < 0.3 * seen
    assert measured.passes < 1.25 * plain.passes  # blocks of vectors weigh much beside so small a batch
    assert measured.measured


def test_nor_with_a_preconditioner_once_it_is_known_to_be_that_of_one_pass(trained: Trained) -> None:
    plain, first, later = (trained(tokens, "AdamW", *how) for how in ((None, 4), ("full", 1), ("full", 4)))
    seen = plain.passes - plain.after_passes
    assert first.after_passes - plain.after_passes > 0.5 * seen  # kept: the pass might have been one of several
    assert later.after_passes - plain.after_passes < 0.1 * seen


@pytest.mark.parametrize("level", ["drift", "noise", "full"])
def test_no_copy_of_large_matrices_is_made_where_the_optimizer_has_the_step(level: str, trained: Trained) -> None:
    plain, measured = (trained(matrices, "SGD", one, 4) for one in (None, level))
    assert max(measured.update, measured.passes) - max(plain.update, plain.passes) < 0.3 * weights(matrices)


@pytest.mark.parametrize("network", [matrices, maps])
def test_between_steps_there_is_one_block_and_no_copy_of_the_weights(
    network: Callable[[], nn.Module], trained: Trained
) -> None:
    plain, measured = (trained(network, "Adam", level, 4) for level in (None, "drift"))
    assert measured.let_go
    assert measured.between - plain.between < 1.2 * measured.blocks + 0.1 * weights(network)
