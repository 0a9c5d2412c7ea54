"""The nearest vectors by cosine, over candidates that come in chunks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from qis_edge.core.errors import RoutingError

#: Similarities are compared to this many decimals: equal vectors must tie, and matrix
#: products of equal rows may differ in the last bit.
_DECIMALS = 12


class Candidate(NamedTuple):
    """One packet that may be near.

    :param vector: little-endian doubles, or ``None``.
    :param key: what the caller knows it by.
    """

    vector: bytes | None
    time: int
    position: int
    key: int


def to_bytes(vector: Sequence[float]) -> bytes:
    """As :class:`Candidate` wants it."""
    return bytes(_numpy().asarray(vector, dtype="<f8").tobytes())


def nearest(
    chunks: Iterable[Sequence[Candidate]], vector: Sequence[float], limit: int
) -> list[int]:
    """The keys of the ``limit`` nearest, nearest first.

    Ties: newest, then last in position, first. Those with no vector, one of another
    length or one without direction come last, newest first. One chunk at a time is held.

    :raises RoutingError: numpy is not installed.
    """
    numpy = _numpy()
    target = numpy.asarray(vector, dtype="<f8")
    target /= numpy.linalg.norm(target)
    best: list[tuple[float, int, int, int]] = []
    rest: list[tuple[int, int, int]] = []
    for chunk in chunks:
        near = [c for c in chunk if c.vector is not None and len(c.vector) == target.nbytes]
        scores = _scores(numpy, near, target)
        scored = [
            (score, c.time, c.position, c.key)
            for score, c in zip(scores, near, strict=True)
            if score == score  # noqa: PLR0124 - not a number: the vector has no direction
        ]
        best = heapq.nlargest(limit, [*best, *scored])
        if len(best) < limit:
            known = {item[3] for item in scored}
            others = [(c.time, c.position, c.key) for c in chunk if c.key not in known]
            rest = heapq.nlargest(limit, [*rest, *others])
    keys = [item[3] for item in best] + [item[2] for item in rest]
    return keys[:limit]


def _scores(numpy: Any, near: Sequence[Candidate], target: Any) -> list[float]:
    if not near:
        return []
    joined = b"".join(c.vector for c in near if c.vector is not None)
    matrix = numpy.frombuffer(joined, dtype="<f8").reshape(len(near), -1)
    with numpy.errstate(all="ignore"):
        scores = matrix @ target / numpy.linalg.norm(matrix, axis=1)
    found: list[float] = numpy.round(scores, _DECIMALS).tolist()
    return found


def _numpy() -> Any:
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise RoutingError(
            "a query by vector needs numpy", hint="pip install 'qis-edge[gateway]'"
        ) from error
    return np
