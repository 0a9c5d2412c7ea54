"""What is installed beside us under the name of a group: entry points.

``importlib.metadata`` finds them too, but loads what reads mail and archives for it: 2 MiB and
20 ms, on a node that would have no other use for either. Where nothing is found here (in an
archive, say), it is asked after all.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Plugin(NamedTuple):
    """An entry point.

    :param value: ``module:attribute``.
    """

    name: str
    value: str

    def load(self) -> Any:
        """What it names. May raise anything: it is somebody else's code."""
        module, _, attribute = self.value.partition(":")
        found: Any = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
        return found


def plugins(group: str, name: str | None = None) -> list[Plugin]:
    """The entry points of a group, or those of this name."""
    found = [one for one in _beside_us(group) if name is None or one.name == name]
    if found:
        return found
    from importlib.metadata import entry_points

    return [
        Plugin(point.name, point.value.partition("[")[0].strip())
        for point in entry_points(group=group)
        if name is None or point.name == name
    ]


def _beside_us(group: str) -> Iterator[Plugin]:
    seen: set[str] = set()
    for folder in sys.path:
        try:
            about = sorted(Path(folder or ".").glob("*.*-info/entry_points.txt"))
        except OSError:
            continue
        for path in about:
            # Of two of the same distribution, the one that is imported: the first.
            distribution = re.sub(r"[-_.]+", "-", path.parent.name.partition("-")[0]).lower()
            if distribution not in seen:
                seen.add(distribution)
                yield from _read(path, group)


def _read(path: Path, group: str) -> Iterator[Plugin]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    ours = False
    for line in lines:
        line = line.strip()
        if line.startswith("["):
            ours = line == f"[{group}]"
        elif ours and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            if name.strip():
                yield Plugin(name.strip(), value.partition("[")[0].strip())
