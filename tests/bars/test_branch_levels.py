"""Levels of replicas, of those too whose weights are on their way to infinity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lipadvisor.experiments.bars.branches import _levels
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.replicas import Replicas
from lipadvisor.experiments.reproduce.training import Recipe, Run, train
from lipadvisor.probe import Probe


def _build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def _trained() -> Run:
    return train(Recipe("sgd", 2, interval=10**9, level="norms"), load_images("digits"), _build, lambda *_: None)


@pytest.mark.parametrize("weight", [1e160, float("inf"), float("nan")])
def test_a_replica_that_blows_up_has_no_level_and_the_others_keep_theirs(weight: float) -> None:
    images, done = load_images("digits"), _trained()
    replicas = Replicas(done.model, done.optimizer, 3, images.train_inputs, images.train_targets, 10, 0)
    layers = Probe(done.model, done.optimizer).layers
    shapes = [(1, 64), (1, 12)]
    before_R = _levels(replicas, done, layers, shapes)
    norms = [torch.linalg.matrix_norm(layer.weight.detach().double(), 2).log() for layer in layers]
    np.testing.assert_allclose(before_R, float(sum(norms)))
    replicas.kernels(layers[1], done.model)[1] *= weight
    after_R = _levels(replicas, done, layers, shapes)
    assert np.isnan(after_R[1])
    np.testing.assert_array_equal(after_R[[0, 2]], before_R[[0, 2]])
