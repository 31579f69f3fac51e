"""The workloads that arms are compared on: one file each, one row here.

A workload is data split in three, a model, a loss and an optimizer. The training split is trained on, the validation
split selects, and the test split reports what was selected: nothing selects on it.
"""

from lipadvisor.experiments.workloads.digits_convnet import digits_convnet
from lipadvisor.experiments.workloads.digits_mlp import digits_mlp
from lipadvisor.experiments.workloads.workload import Batches, Data, Score, Split, Workload

__all__ = ["WORKLOADS", "Batches", "Data", "Score", "Split", "Workload"]

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in (digits_mlp, digits_convnet)}
