"""Operator norms of an einsum in each of its operands, the others held at their values.

With the others contracted to one tensor ``B``, the map ``dx -> einsum(dx, B)`` is a matrix product for each value of
the letters that ``dx``, ``B`` and the result share, so its norm is the largest spectral norm of those matrices, times
the root of the size of every letter of ``dx`` that is summed by itself.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import torch
from torch import Tensor

from lipadvisor.modules.operator_norm import matrix_norm

__all__ = ["einsum_norms"]

LARGEST = 1 << 26  # entries of the other operands contracted, above which it is not done


def einsum_norms(equation: str, operands: Sequence[Tensor]) -> list[float]:
    """Return, for each operand, the norm of ``torch.einsum(equation, operands)`` as a linear map of it alone.

    Args:
        equation: as torch takes it; ellipsis, implicit result and repeated letters included.
        operands: their values, real or complex.

    Raises:
        NotImplementedError: it broadcasts axes of length 1, or the other operands contract to something too large.
    """
    terms, result = _letters(equation, [operand.ndim for operand in operands])
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, size in zip(term, operand.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise NotImplementedError(f"einsum {equation!r} broadcasts the axis {letter!r}: not understood")
    wide = [x.detach().to(torch.complex128 if x.is_complex() else torch.float64) for x in operands]
    return [_norm(i, terms, result, wide, sizes) for i in range(len(operands))]


def _norm(at: int, terms: list[str], result: str, operands: list[Tensor], sizes: dict[str, int]) -> float:
    own = "".join(dict.fromkeys(terms[at]))  # to take a diagonal has norm 1
    others = [i for i in range(len(terms)) if i != at]
    theirs = "".join(dict.fromkeys(letter for i in others for letter in terms[i] if letter in own + result))
    if math.prod(sizes[letter] for letter in theirs) > LARGEST:
        raise NotImplementedError("einsum of operands that contract to something too large: not understood")
    alone = math.prod(sizes[letter] for letter in own if letter not in theirs + result)
    if not others:
        return math.sqrt(alone)
    batch = [letter for letter in theirs if letter in own and letter in result]
    summed = [letter for letter in theirs if letter in own and letter not in result]
    fresh = [letter for letter in theirs if letter not in own]
    order = "".join((*batch, *summed, *fresh))
    B = torch.einsum(f"{','.join(terms[i] for i in others)}->{order}", *_alike([operands[i] for i in others]))
    shape = [math.prod(sizes[letter] for letter in group) for group in (batch, summed, fresh)]
    matrices = B.reshape(shape)
    if matrices.numel() == 0:
        return 0.0
    if len(matrices) == 1:
        return matrix_norm(matrices[0]) * math.sqrt(alone)
    return float(torch.linalg.matrix_norm(matrices, 2).max()) * math.sqrt(alone)


def _alike(operands: list[Tensor]) -> list[Tensor]:
    kind = torch.complex128 if any(x.is_complex() for x in operands) else torch.float64
    return [x.to(kind) for x in operands]


def _letters(equation: str, axes: Sequence[int]) -> tuple[list[str], str]:
    """Return each operand's letters and the result's, with the ellipsis spelled out from the right."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = [n - len(term.replace("...", "")) if "..." in term else 0 for term, n in zip(terms, axes, strict=True)]
    dots = "".join(spare[: max(hidden)])
    if not arrow:
        every = "".join(terms).replace("...", "")
        result = "..." + "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    spelled = [term.replace("...", dots[len(dots) - n :]) for term, n in zip(terms, hidden, strict=True)]
    return spelled, result.replace("...", dots)
