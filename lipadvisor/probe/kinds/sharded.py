"""Weights that ``fully_shard`` (FSDP2) has spread over processes by their rows, measured in shares.

The parameter is a DTensor that is ``Shard(0)`` over one dimension of a mesh. What each process holds is a kernel of
fewer rows; a form says what operator that is a share of, and a use can be asked for the gradients of some rows alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lipadvisor.probe.kinds.attention import GatheredProjectionUse, ProjectionUse
from lipadvisor.probe.kinds.convolution import ConvolutionForm, ConvolutionUse
from lipadvisor.probe.kinds.convolution_matrix import ConvolutionMatrixForm, ConvolutionMatrixUse
from lipadvisor.probe.kinds.embedding import BagUse, Lookups, RowsOfTable, TableUse
from lipadvisor.probe.kinds.kind import Candidate, Form, TrackedLayer, Use, wide
from lipadvisor.probe.kinds.linear import LinearUse, MatrixForm
from lipadvisor.probe.kinds.repeated import RepeatedForm, RepeatedUse
from lipadvisor.spectra import ConvGeometry, LayerOperator
from lipadvisor.spectra.sharded import Shard, ShardedOperator

__all__ = [
    "ShardedForm",
    "fully_sharded_mesh",
    "is_sharded",
    "of_rows",
    "put_shares_back",
    "sharded_bound",
    "sharded_form",
    "sharded_use",
]


@dataclass(frozen=True, slots=True)
class ShardedForm:
    """A weight as an operator, in shares of its rows.

    Attributes:
        whole: the form of all rows.
        part: that of as many as the longest share has.
        shard: where the rows are.
        skipped: rows of this process's share of the parameter before those of the weight (parts of packed weights).
    """

    whole: Form
    part: Form
    shard: Shard
    skipped: int = 0

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the whole kernel."""
        return self.whole.kernel_shape

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the longest share, to which the others are filled up."""
        return self.part.kernel_shape

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of this process's share."""
        return (self.shard.counts[self.shard.rank], *self.part.kernel_shape[1:])

    @property
    def shares(self) -> tuple[int, ...]:
        """Rows on each process."""
        return self.shard.counts

    @property
    def matrix(self) -> bool:
        """Whether the kernel is the operator's matrix."""
        return self.whole.matrix

    def own(self, tensor: Any) -> Tensor:
        """Return this process's share of a tensor that is laid out as the parameter, as a view of it."""
        share: Tensor = tensor.detach().to_local() if is_sharded(tensor) else tensor
        return share[self.skipped : self.skipped + self.shard.counts[self.shard.rank]]

    def view(self, tensor: Tensor) -> Tensor:
        """Return a share of a tensor of the parameter's shape as the kernel's."""
        return self.whole.view(tensor)

    def operator(self, input_shape: tuple[int, ...] | None) -> LayerOperator | None:
        """Return the operator in shares; None where it depends on the input's shape and that is not known."""
        whole = self.whole.operator(input_shape)
        if whole is None:
            return None
        of_inputs = _is_transposed(self.whole)
        if of_inputs and input_shape is not None:  # (B, C, ...) of the share's channels
            dims = len(self.whole.kernel_shape) - 2
            place = len(input_shape) - 1 - dims
            input_shape = (*input_shape[:place], self.shard.longest, *input_shape[place + 1 :])
        part = self.part.operator(input_shape)
        assert part is not None
        return ShardedOperator(whole, part, self.shard, of_inputs)


def is_sharded(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor: what is here may be a part of it."""
    return hasattr(tensor, "placements")


def _group_of(weight: Any, mesh: Any) -> Any:
    """Return the group that the rows of ``weight`` are spread over, or why they are not.

    Args:
        weight: a DTensor.
        mesh: that ``fully_shard`` has spread the model over; None for none.
    """
    if mesh is None:
        return "its weight is sharded, but not by fully_shard (tensor parallel): not supported"
    if weight.device_mesh != mesh or not _in_rows_of_mesh(weight):
        return "its weight is spread over more than the mesh of its model's data-parallel processes: not supported"
    if weight.device.type != mesh.device_type:
        return f"its weight is on {weight.device.type} and is used on {mesh.device_type} (offloaded): not supported"
    dimension = weight.placements[-1].dim
    if dimension != 0:
        return f"its weight is sharded along dimension {dimension} (Shard({dimension})); only rows (Shard(0)) are"
    return mesh.get_group(mesh.ndim - 1)


def sharded_form(weight: Any, candidate: Candidate, mesh: Any) -> ShardedForm | str:
    """Return a sharded weight's form, or why it cannot be measured in shares."""
    group = _group_of(weight, mesh)
    if isinstance(group, str):
        return group
    processes, rank, total = distributed.get_world_size(group), distributed.get_rank(group), weight.shape[0]
    chunk = -(-total // processes)
    bounds = [(min(r * chunk, total), min((r + 1) * chunk, total)) for r in range(processes)]
    rows = candidate.rows or slice(0, total)
    inside = [(min(max(a, rows.start), rows.stop), min(max(b, rows.start), rows.stop)) for a, b in bounds]
    shard = Shard(group, rank, tuple(b - a for a, b in inside))
    part = _part_form(candidate.form, shard.longest)
    if isinstance(part, str):
        return part
    return ShardedForm(candidate.form, part, shard, max(inside[rank][0] - bounds[rank][0], 0))


def _part_form(form: Form, rows: int) -> Form | str:
    """Return the form of ``rows`` rows of a weight, or why there is none."""
    if isinstance(form, MatrixForm):
        return type(form)(rows, form.inputs)
    if isinstance(form, ConvolutionForm | ConvolutionMatrixForm):
        geometry = form.geometry
        if geometry.groups != 1:
            return "a convolution with groups whose weight is sharded is not supported"
        if geometry.transposed and isinstance(form, ConvolutionMatrixForm):
            return "a transposed convolution as a matrix whose weight is sharded is not supported"
        return replace(form, geometry=_of_rows(geometry, rows))
    if isinstance(form, RepeatedForm):
        return RepeatedForm(replace(form.convolution, geometry=_of_rows(form.geometry, rows)))
    return "a gain that is sharded is not supported"


def _of_rows(geometry: ConvGeometry, rows: int) -> ConvGeometry:
    return replace(geometry, kernel_shape=(rows, *geometry.kernel_shape[1:]))


def _is_transposed(form: Form) -> bool:
    return isinstance(form, ConvolutionForm) and form.geometry.transposed


def sharded_use(use: Use | None) -> Use | None:
    """Return the calls of a module with a sharded weight; None where they do not tell what each row was given."""
    if type(use) is ProjectionUse:
        return GatheredProjectionUse(use.module, use.name, use.reader)
    return (
        use if type(use) in (LinearUse, ConvolutionUse, ConvolutionMatrixUse, RepeatedUse, TableUse, BagUse) else None
    )


def of_rows(use: Use, kept: Any, grad: Tensor, rows: slice) -> tuple[Use, Any, Tensor]:
    """Return use, input and output gradient of a call, as if the weight had the rows ``rows`` alone."""
    if isinstance(use, ConvolutionUse):
        geometry = use.form.geometry
        form = replace(use.form, geometry=_of_rows(geometry, rows.stop - rows.start))
        channels: Any = (..., rows, *[slice(None)] * geometry.dimensions)
        if geometry.transposed:
            return ConvolutionUse(use.module, form), kept[channels], grad
        return ConvolutionUse(use.module, form), kept, grad[channels]
    if isinstance(kept, Lookups):
        assert isinstance(use, TableUse | BagUse)
        inside = (kept.row_n >= rows.start) & (kept.row_n < rows.stop)
        some = replace(
            kept, row_n=kept.row_n.clamp(rows.start, rows.stop - 1) - rows.start, share_n=kept.share_n * inside
        )
        return RowsOfTable(use, rows.stop - rows.start), some, grad
    return use, kept, grad[..., rows]


def fully_sharded_mesh(model: nn.Module) -> Any:
    """Return the mesh that ``fully_shard`` has spread a model's parameters over; None where it has not."""
    if not any(_fully_sharded(model)):
        return None
    return next((_mesh(p) for p in model.parameters() if is_sharded(p) and _in_rows_of_mesh(p)), None)


def _mesh(weight: Any) -> Any:
    return weight.device_mesh


def _in_rows_of_mesh(weight: Any) -> bool:
    """Return whether a weight is spread over the last dimension of its mesh, and copied along one before it if any."""
    names = [type(placement).__name__ for placement in weight.placements]
    return names in (["Shard"], ["Replicate", "Shard"])


def put_shares_back(model: nn.Module) -> None:
    """Let go of weights that ``fully_shard`` has gathered for a forward pass without a backward pass."""
    for module in _fully_sharded(model):
        module.reshard()


def _fully_sharded(model: nn.Module) -> Iterator[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported, not used
    return (module for module in model.modules() if fsdp is not None and isinstance(module, fsdp.FSDPModule))


def sharded_bound(layer: TrackedLayer) -> Tensor:
    """Return :func:`~lipadvisor.probe.bound.bound_row` of a sharded kernel: one collective.

    The norm of a stack of shares is at most the root of the sum of their squared norms.
    """
    assert isinstance(layer.form, ShardedForm)
    share = wide(layer.value())
    matrix = torch.nan_to_num(share.flatten(1))
    top = torch.linalg.svdvals(matrix)[:1].sum() if share.numel() else share.new_zeros(())
    squares = layer.form.shard.add(torch.stack([top.square(), share.square().sum()]))
    bound = squares[0].sqrt() * math.prod(share.shape[2:]) ** 0.5
    nothing, loose = torch.zeros_like(bound), torch.ones_like(bound)
    return torch.stack([bound, nothing, nothing, squares[1], loose])[None]
