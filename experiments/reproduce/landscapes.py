"""[D] Fig 1: the loss and the Lipschitz bound over one random plane through the trained weights; the trajectory."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call

from lipadvisor.experiments.reproduce import Settings, Verdict
from lipadvisor.experiments.reproduce.convnet import conv_net, initialize
from lipadvisor.experiments.reproduce.figures import keep_figure
from lipadvisor.experiments.reproduce.images import Images, load_images
from lipadvisor.experiments.reproduce.norms import input_shapes, log_norms
from lipadvisor.experiments.reproduce.regularizers import soft_cross_entropy
from lipadvisor.experiments.reproduce.training import Recipe, steps_for, train
from lipadvisor.probe import Probe
from lipadvisor.report.style import COLOURS
from lipadvisor.terms import Array, Terms
from lipadvisor.trajectory import write_json
from lipadvisor.trajectory.whole_files import write_bytes

__all__ = ["run"]

CLAIM = (
    "[D] Fig 1: the Lipschitz bound has a landscape of its own beside the loss; training descends the one and climbs "
    "the other."
)
_REACH = 1.0  # of the plane, in units of the weights' own norms
_SAMPLES = 1024


def run(settings: Settings) -> Verdict:
    """Rerun the figure."""
    images = load_images(settings.data)
    steps = 40 if settings.quick else steps_for(images, 500)
    side = 5 if settings.quick else 21
    path = settings.out / "landscape.npz"
    identity = f"{images.name} {steps} {side} {settings.seed}"
    kept = _kept(path, identity) or _made(settings, images, steps, side, path, identity)
    figures = _figures(kept)
    write_json(settings.out / "data.json", {"steps": steps, "side": side, **figures})
    keep_figure(settings.out, lambda made: _draw(made, kept), 10.0, 4.2)
    agrees = figures["loss_fall"] > 0.0 and figures["bound_rise"] > 0.0 and figures["uphill_share"] > 0.5
    finding = (
        f"Over {steps} steps the loss fell by {figures['loss_fall']:.3f} nats while ln K rose by "
        f"{figures['bound_rise']:.2f}; {figures['uphill_share']:.0%} of the intervals that lowered the loss raised the "
        f"bound. Over the plane, ln K spans {figures['bound_range']:.2f} nats and its correlation with ln loss is "
        f"{figures['correlation']:.2f}."
    )
    return Verdict("landscapes", CLAIM, bool(agrees), figures, finding)


def _kept(path: Any, identity: str) -> dict[str, Array] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as found:
        if bytes(found["identity"]).decode() != identity:
            return None
        return {name: np.asarray(found[name]) for name in found.files if name != "identity"}


def _made(settings: Settings, images: Images, steps: int, side: int, path: Any, identity: str) -> dict[str, Array]:
    models: list[nn.Module] = []
    snapshots: list[dict[str, Tensor]] = []

    def build() -> nn.Module:
        model = conv_net(images.shape, images.classes)
        initialize(model, "kaiming")
        models.append(model)
        return model

    every = max(1, steps // 50)

    def on_step(step: int, loss: float, terms: Terms | None) -> bool:
        if step % every == 0 or step + 1 == steps:
            snapshots.append({name: p.detach().clone() for name, p in models[0].named_parameters()})
        return not np.isfinite(loss)

    recipe = Recipe("sgd", steps, seed=settings.seed, level="norms", interval=10**9)
    done = train(recipe, images, build, on_step)
    surface = _Surface(done.model, done.optimizer, images)
    plane = _plane(snapshots[-1], settings.seed)
    grid = torch.linspace(-_REACH, _REACH, side)
    loss_YX, bound_YX = np.empty((side, side)), np.empty((side, side))
    for y in range(side):
        for x in range(side):
            at = {
                name: value + grid[x] * plane[0][name] + grid[y] * plane[1][name]
                for name, value in snapshots[-1].items()
            }
            loss_YX[y, x], bound_YX[y, x] = surface.loss(at), surface.bound(at)
        settings.progress(f"row {y + 1} of {side}")
    arrays = {
        "grid": grid.double().numpy(),
        "loss_YX": loss_YX,
        "bound_YX": bound_YX,
        "path_loss": np.array([surface.loss(at) for at in snapshots]),
        "path_bound": np.array([surface.bound(at) for at in snapshots]),
        "path_TP": np.array([_projected(at, snapshots[-1], plane) for at in snapshots]),
    }
    _save(path, identity, arrays)
    return arrays


def _save(path: Any, identity: str, arrays: dict[str, Array]) -> None:
    buffer = io.BytesIO()
    content: dict[str, Any] = {"identity": np.frombuffer(identity.encode(), dtype=np.uint8), **arrays}
    np.savez_compressed(buffer, allow_pickle=False, **content)
    write_bytes(path, buffer.getvalue())


class _Surface:
    """The loss over training samples, and ln K, at any weights of a model."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, images: Images) -> None:
        self._model = model
        self._inputs = images.train_inputs[:_SAMPLES]
        targets = images.train_targets[:_SAMPLES]
        self._targets = nn.functional.one_hot(targets, images.classes).float()
        self._layers = Probe(model, optimizer).layers
        self._shapes = input_shapes(model, self._layers, self._inputs[:2])
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._names = [names[id(layer.weight)] for layer in self._layers]

    def loss(self, at: dict[str, Tensor]) -> float:
        """Return the mean loss, nats."""
        with torch.no_grad():
            return float(soft_cross_entropy(functional_call(self._model, at, (self._inputs,)), self._targets))

    def bound(self, at: dict[str, Tensor]) -> float:
        """Return ln K, nats."""
        parts = zip(self._layers, self._shapes, self._names, strict=True)
        return float(sum(log_norms(layer, shape, at[name].double()[None])[0] for layer, shape, name in parts))


def _plane(center: dict[str, Tensor], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return two random directions; each output's part has the norm of that output's weights (filter-wise)."""
    generator = torch.Generator().manual_seed(seed)
    pair = []
    for _ in range(2):
        direction = {}
        for name, value in center.items():
            if value.dim() < 2:
                direction[name] = torch.zeros_like(value)  # biases stay: they do not enter K
                continue
            raw = torch.randn(value.shape, generator=generator)
            size = value.flatten(1).norm(dim=1) / raw.flatten(1).norm(dim=1)
            direction[name] = raw * size.reshape(-1, *([1] * (value.dim() - 1)))
        pair.append(direction)
    return pair[0], pair[1]


def _projected(
    at: dict[str, Tensor], center: dict[str, Tensor], plane: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> tuple[float, float]:
    """Return the plane's coordinates of ``at``: along each direction, which are orthogonal but for chance."""
    found = []
    for direction in plane:
        along = sum(float(((at[name] - center[name]) * direction[name]).sum()) for name in center)
        found.append(along / sum(float(value.square().sum()) for value in direction.values()))
    return found[0], found[1]


def _figures(kept: dict[str, Array]) -> dict[str, float]:
    loss, bound = kept["path_loss"], kept["path_bound"]
    down = np.diff(loss) < 0.0
    uphill = (np.diff(bound) > 0.0)[down]
    return {
        "loss_fall": float(loss[0] - loss[-1]),
        "bound_rise": float(bound[-1] - bound[0]),
        "uphill_share": float(uphill.mean()) if len(uphill) else 0.0,
        "bound_range": float(np.ptp(kept["bound_YX"])),
        "correlation": float(np.corrcoef(np.log(kept["loss_YX"].ravel()), kept["bound_YX"].ravel())[0, 1]),
    }


def _draw(made: Figure, kept: dict[str, Array]) -> None:
    axes = made.subplots(1, 3, width_ratios=(1.1, 1.1, 1.0))
    x, y = kept["path_TP"].T
    surfaces = ((axes[0], np.log(kept["loss_YX"]), "ln loss"), (axes[1], kept["bound_YX"], "ln K, nats"))
    for ax, values, title in surfaces:
        drawn = ax.contourf(kept["grid"], kept["grid"], values, levels=18, cmap="viridis")
        made.colorbar(drawn, ax=ax)
        ax.plot(x, y, color="white", linewidth=1.2)
        ax.plot(x[-1], y[-1], color=COLOURS[1], marker="o", markersize=5)
        ax.set(title=title, xlabel="first direction", ylabel="second direction")
        ax.grid(False)
        zoom = ax.inset_axes((0.6, 0.6, 0.37, 0.3))
        zoom.plot(x, y, color=COLOURS[0], linewidth=1.0)
        zoom.plot(x[-1], y[-1], color=COLOURS[1], marker="o", markersize=3)
        zoom.set_title("trajectory", fontsize=6, color="white", pad=2)
        zoom.tick_params(labelsize=5, colors="white")
        zoom.set_facecolor("white")
    axes[2].plot(kept["path_bound"], np.log(kept["path_loss"]), color=COLOURS[0], marker=".", markersize=3)
    axes[2].set(title="along the trajectory", xlabel="ln K, nats", ylabel="ln loss")
