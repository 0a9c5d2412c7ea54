"""Sensor drivers and how they are found: entry points of the group ``qis_edge.sensors``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

from qis_edge.core.errors import SensorError, UsageError
from qis_edge.plugins import plugins

if TYPE_CHECKING:
    from qis_edge.sensor import SensorFactory

GROUP = "qis_edge.sensors"


def driver_names() -> list[str]:
    """The installed drivers, sorted."""
    return sorted({point.name for point in plugins(GROUP)})


def load_driver(name: str) -> SensorFactory:
    """The factory of a driver, by the name of its entry point or as ``module:factory``.

    :raises SensorError: there is none, or importing it fails.
    """
    if ":" in name:
        try:
            return cast("SensorFactory", load_callable(name))
        except UsageError as error:
            raise SensorError(str(error), hint=error.hint) from error
    for point in plugins(GROUP, name):
        try:
            return cast("SensorFactory", point.load())
        except Exception as error:
            raise SensorError(f"the driver {name} cannot be loaded: {error}") from error
    raise SensorError("there is no such driver")


def load_callable(name: str) -> Any:
    """What ``module:function`` of a configuration names.

    :raises UsageError: it cannot be imported or called; ``field`` is the name.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"cannot be imported: {error}",
            field=name,
            hint="it must be importable: installed, or in a folder of PYTHONPATH",
        ) from error
    except Exception as error:
        raise UsageError(f"importing it failed: {error!r}", field=name) from error
    if not callable(found):
        raise UsageError("is not callable", field=name)
    return found
