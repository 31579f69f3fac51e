"""Readers of data that users have at home: CIFAR-10 and CIFAR-100, without running any code that a file holds."""

from lipadvisor.experiments.data.cifar import Cifar, read_cifar
from lipadvisor.experiments.data.plain_pickle import PickleError, load_plain_pickle

__all__ = ["Cifar", "PickleError", "load_plain_pickle", "read_cifar"]
