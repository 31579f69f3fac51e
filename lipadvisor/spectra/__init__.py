"""Spectra: a layer as an operator, its tracked top singular block, and the second-order form of its norm."""

from lipadvisor.spectra.block import TrackedBlock, block_rank, cold_start, refresh, residual, start_vectors
from lipadvisor.spectra.conv2d import Conv2dOperator
from lipadvisor.spectra.convolution import ConvGeometry, ConvOperator
from lipadvisor.spectra.curvature import (
    CgResolvent,
    FlatResolvent,
    GramResolvent,
    Resolvent,
    curvature_form,
)
from lipadvisor.spectra.diagonal import DiagonalOperator
from lipadvisor.spectra.linear import LinearOperator
from lipadvisor.spectra.operator import LayerOperator

__all__ = [
    "CgResolvent",
    "Conv2dOperator",
    "ConvGeometry",
    "ConvOperator",
    "DiagonalOperator",
    "FlatResolvent",
    "GramResolvent",
    "LayerOperator",
    "LinearOperator",
    "Resolvent",
    "TrackedBlock",
    "block_rank",
    "cold_start",
    "curvature_form",
    "refresh",
    "residual",
    "start_vectors",
]
