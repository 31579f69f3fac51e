"""What is kept of a measured run: every measurement as arrays in one file, read back as the same ``Terms``.

A run whose file is there, and was made by the same recipe, is not run again: that is how reproductions and bars
resume.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lipadvisor.experiments.reproduce.images import Images
from lipadvisor.experiments.reproduce.training import Recipe, accuracy, train
from lipadvisor.terms import Array, Terms
from lipadvisor.trajectory.whole_files import write_bytes

__all__ = ["RunLog", "kept_run"]

# Fields of Terms that differ from step to step; the others are the run's own and kept once.
_PER_STEP = (
    "step",
    "lr_L",
    "weight_decay_L",
    "composition_L",
    "log_norm_L",
    "gap_L",
    "log_gain_L",
    "first_L",
    "curvature_L",
    "change_L",
    "update_ratio_L",
    "noise_LL",
    "noise_curvature_L",
    "network_log_norm",
    "optimizer_step",
)
_PER_RUN = ("names", "kinds", "shapes", "groups", "batch_size", "optimizer", "momentum", "level")


@dataclass(slots=True)
class RunLog:
    """A run's measurements, one row each, and its losses, one each step.

    Attributes:
        recipe: identity of what was run.
        constants: the fields of ``Terms`` that do not change.
        columns: the others, first axis the measurements.
        status_TL: statuses as text.
        loss_T: training loss of each step's batch, before the step.
        end: what was measured once, after the last step.
    """

    recipe: str
    constants: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _PER_STEP})
    status_TL: list[list[str]] = field(default_factory=list)
    loss_T: list[float] = field(default_factory=list)
    end: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, terms: Terms | None) -> None:
        """Take in one step."""
        self.loss_T.append(loss)
        if terms is None:
            return
        if not self.constants:
            self.constants = {name: getattr(terms, name) for name in _PER_RUN}
        for name in _PER_STEP:
            self.columns[name].append(getattr(terms, name))
        self.status_TL.append(list(terms.status_L))

    def array(self, name: str) -> Array:
        """Return one field of all measurements, float64, first axis time."""
        return np.asarray(self.columns[name], dtype=np.float64)

    def recent_loss(self, step: int, count: int) -> float:
        """Return the mean loss of the last ``count`` steps up to and with ``step``."""
        return float(np.mean(self.loss_T[max(0, step - count + 1) : step + 1]))

    def __len__(self) -> int:
        """Return the number of measurements."""
        return len(self.status_TL)

    def terms(self) -> Iterator[Terms]:
        """Give back the measurements, in order."""
        for row, status in enumerate(self.status_TL):
            values = {name: self.columns[name][row] for name in _PER_STEP}
            values["step"], values["optimizer_step"] = int(values["step"]), int(values["optimizer_step"])
            values["network_log_norm"] = float(values["network_log_norm"])
            yield Terms(**self.constants, **values, status_L=tuple(status))

    def save(self, path: Path) -> None:
        """Write the run, whole, as a compressed npz without any pickled object."""
        arrays = {name: self.array(name) for name in _PER_STEP}
        arrays["loss_T"] = np.asarray(self.loss_T, dtype=np.float64)
        text = {"recipe": self.recipe, "constants": self.constants, "status_TL": self.status_TL, "end": self.end}
        arrays["text"] = np.frombuffer(json.dumps(text).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> RunLog:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is not a run.
        """
        try:
            with np.load(path, allow_pickle=False) as kept:
                text = json.loads(kept["text"].tobytes())
                columns: dict[str, list[Any]] = {name: list(kept[name]) for name in _PER_STEP}
                loss_T = kept["loss_T"].tolist()
        except (KeyError, OSError) as error:
            raise ValueError(f"{path} is not a recorded run: {error}") from error
        constants = text["constants"]
        for name in ("names", "kinds", "groups"):
            constants[name] = tuple(constants[name])
        constants["shapes"] = tuple((int(rows), int(columns)) for rows, columns in constants["shapes"])
        return cls(text["recipe"], constants, columns, text["status_TL"], loss_T, text["end"])


def kept_run(
    path: Path,
    recipe: Recipe,
    images: Images,
    build: Callable[[], nn.Module],
    progress: Callable[[str], None],
    model_name: str = "convnet",
) -> RunLog:
    """Return the run at ``path``, or make and keep it.

    Args:
        path: of its npz file.
        recipe: what to run.
        images: what to train on.
        build: makes the model.
        progress: takes a line of text.
        model_name: names what ``build`` makes, for the identity.
    """
    identity = f"{images.name} {len(images.train_targets)} {model_name} {recipe.identity}"
    if path.exists():
        kept = RunLog.load(path)
        if kept.recipe == identity:
            progress(f"{path.stem}: kept from before")
            return kept
    log = RunLog(identity)
    last = time.monotonic()

    def on_step(step: int, loss: float, terms: Terms | None) -> bool:
        nonlocal last
        log.add(loss, terms)
        if time.monotonic() - last > 10.0:
            last = time.monotonic()
            progress(f"{path.stem}: step {step + 1} of {recipe.steps}, loss {loss:.3f}")
        return not np.isfinite(loss)

    run = train(recipe, images, build, on_step)
    loss, hits = accuracy(run.model, images.test_inputs, images.test_targets)
    log.end = {"test_loss": loss, "test_accuracy": hits, "clipped": float(run.clipped), "steps": float(run.steps)}
    log.save(path)
    progress(f"{path.stem}: done, test accuracy {hits:.3f}")
    return log
