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
    REQUIRED,
    ListOf,
    MapOf,
    Report,
    Reported,
    Scalar,
    Setting,
    Table,
    Tables,
    Type,
    Where,
    Wrong,
    closest,
    did_you_mean,
    from_mapping,
    leftover,
    load,
    loads,
    parse,
    setting,
    settings_of,
)
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
    OneOf,
    Size,
    Text,
    Url,
    quoted,
    whole,
)

__all__ = [
    "NAME",
    "REQUIRED",
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
    "OneOf",
    "Report",
    "Reported",
    "Scalar",
    "Setting",
    "Size",
    "Table",
    "Tables",
    "Text",
    "Type",
    "Url",
    "Where",
    "Wrong",
    "closest",
    "did_you_mean",
    "from_mapping",
    "leftover",
    "load",
    "loads",
    "parse",
    "quoted",
    "setting",
    "settings_of",
    "whole",
]
