"""Kinds of layers: one file each says how its weight is an operator, and what a call tells of it."""

from lipadvisor.probe.kinds.kind import Candidate, Form, Options, Plain, Skipped, Source, TrackedLayer, Use

__all__ = ["Candidate", "Form", "Options", "Plain", "Skipped", "Source", "TrackedLayer", "Use"]
