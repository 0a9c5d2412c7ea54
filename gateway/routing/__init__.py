"""Routing engines: where packets live by fingerprint.

``open_engine("sqlite:routing.db")`` makes one; ``gateway.routing.base`` is the interface.
Third parties add engines through the entry point group ``qis_edge.routing``: the entry
point's name is the scheme, its value a :class:`~gateway.routing.base.EngineFactory`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from gateway.routing.base import (
    EVERYTHING,
    Batch,
    Context,
    Cursor,
    EngineFactory,
    EngineStatus,
    Entry,
    Interest,
    RoutingLayer,
    Subscription,
)
from gateway.routing.url import EngineUrl
from qis_edge.core.errors import RoutingError

__all__ = [
    "EVERYTHING",
    "Batch",
    "Context",
    "Cursor",
    "EngineStatus",
    "EngineUrl",
    "Entry",
    "Interest",
    "RoutingLayer",
    "Subscription",
    "open_engine",
    "schemes",
]

GROUP = "qis_edge.routing"


def schemes() -> tuple[str, ...]:
    """The schemes that are installed, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def open_engine(url: str, context: Context | None = None) -> RoutingLayer:
    """The engine of a URL. ``await engine.open()`` comes next: nothing is touched yet.

    :raises RoutingError: the URL is malformed or has an option that the engine does not
        know, nobody knows its scheme, or the engine's extra is not installed.
    """
    parsed = EngineUrl.parse(url)
    point = _point(parsed.scheme)
    try:
        factory: EngineFactory = point.load()
        return factory(parsed, context or Context())
    except ModuleNotFoundError as error:
        raise RoutingError(
            f"{parsed.scheme}: the module {error.name} is missing", hint=_install(point)
        ) from error


def _point(scheme: str) -> EntryPoint:
    for point in entry_points(group=GROUP):
        if point.name == scheme:
            return point
    known = ", ".join(f"{name}:" for name in schemes())
    raise RoutingError(
        f"no routing engine is called {scheme!r}",
        hint=f"installed are {known}" if known else "install the package qis-edge anew",
    )


def _install(point: EntryPoint) -> str:
    """What to install: the extras that the entry point names, or the scheme's own."""
    package = point.dist.name if point.dist is not None else "qis-edge"
    extras = _extras(point) or point.name
    return f"pip install '{package}[{extras}]'"


def _extras(point: EntryPoint) -> str:
    """Those in brackets. (``EntryPoint.extras`` of Python 3.11 splits at hyphens, too.)"""
    _, _, rest = point.value.partition("[")
    return ",".join(name.strip() for name in rest.rstrip(" ]").split(",") if name.strip())
