"""Settings, declared once: what parses them also explains them.

A table of a configuration file is a frozen dataclass whose fields are made with
:func:`setting`. From these declarations come the parser with all its errors at once
(:mod:`.base`), the commented sample and the reference documentation (:mod:`.text`)::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Distil:
        '''How readings become outcomes.'''

        window: int = setting(Duration("1s", "31d", whole=True), "1h", "Length of a window.")

Each problem has its file, line and key. No message repeats a value that may hold a secret
(URLs, values of unknown keys).
"""

from __future__ import annotations

from qis_edge.schema.base import (
    ListOf,
    MapOf,
    Reported,
    Scalar,
    Table,
    Tables,
    Where,
    Wrong,
    closest,
    did_you_mean,
    from_mapping,
    leftover,
    load,
    loads,
    setting,
    settings_of,
)
from qis_edge.schema.environment import Variables
from qis_edge.schema.types import (
    NAME,
    WORD,
    Choice,
    Duration,
    File,
    Flag,
    Hook,
    Listen,
    Moment,
    Number,
    Size,
    Text,
    Url,
    quoted,
    whole,
)

__all__ = [
    "NAME",
    "WORD",
    "Choice",
    "Duration",
    "File",
    "Flag",
    "Hook",
    "ListOf",
    "Listen",
    "MapOf",
    "Moment",
    "Number",
    "Reported",
    "Scalar",
    "Size",
    "Table",
    "Tables",
    "Text",
    "Url",
    "Variables",
    "Where",
    "Wrong",
    "closest",
    "did_you_mean",
    "from_mapping",
    "leftover",
    "load",
    "loads",
    "quoted",
    "setting",
    "settings_of",
    "whole",
]
