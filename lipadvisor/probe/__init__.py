"""Probe: hooks, per-sample projections, when to measure, and what a step did to each layer's norm."""

from lipadvisor.probe.layers import Skipped, TrackedLayer
from lipadvisor.probe.noise_report import NoiseReport
from lipadvisor.probe.probe import Probe

__all__ = ["NoiseReport", "Probe", "Skipped", "TrackedLayer"]
