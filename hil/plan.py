"""On what a run takes place: which radios and lines, and why these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from hil.bench import GATEWAY, NODE, SECOND


@dataclass(frozen=True, slots=True)
class Plan:
    """Role → address; empty: emulated ones take part. ``why`` is for people."""

    why: str
    ports: dict[str, str] = field(default_factory=dict)

    @property
    def emulated(self) -> bool:
        """Whether no hardware takes part."""
        return not self.ports


def radios(
    named: Sequence[str | None], *, emulated: bool, ci: bool, find: Callable[[], list[str]]
) -> Plan:
    """Which radios: the named ones (node's, gateway's, second gateway's), or the two or three
    that are plugged in, or emulated ones. Where nobody looks on (``ci``) none are looked for.

    :raises pytest.UsageError: what was asked for does not go together.
    """
    ports = {role: name for role, name in zip((NODE, GATEWAY, SECOND), named, strict=True) if name}
    if ports and emulated:
        raise pytest.UsageError("--emulated, or the ports of real radios: not both")
    if len(set(ports.values())) < len(ports):
        raise pytest.UsageError("a radio of its own for each role: two ports are the same")
    if NODE in ports and GATEWAY in ports:
        return Plan("named by port", ports)
    if ports:
        raise pytest.UsageError("--node-radio and --gateway-radio go together")
    if emulated:
        return Plan("asked for")
    if ci:
        return Plan("with CI set, no radio is looked for")
    found = find()
    if not found:
        return Plan("no radio is plugged in")
    if len(found) == 1:
        return Plan(f"only one radio is plugged in, {found[0]}; it takes two")
    if len(found) > 3:
        raise pytest.UsageError(
            f"{len(found)} radios are plugged in ({', '.join(found)}): name two of them, "
            "with --node-radio and --gateway-radio, or say --emulated"
        )
    return Plan("found plugged in", dict(zip((NODE, GATEWAY, SECOND), found, strict=False)))


def line(named: Sequence[str | None], *, emulated: bool) -> Plan:
    """Which serial line: between the named ports (node's, gateway's), or an emulated one.
    Lines are never looked for: who knows what hangs on a serial port.

    :raises pytest.UsageError: what was asked for does not go together.
    """
    ports = {role: name for role, name in zip((NODE, GATEWAY), named, strict=True) if name}
    if not ports:
        return Plan("asked for" if emulated else "no ports are named")
    if emulated:
        raise pytest.UsageError("--emulated, or the ports of a real line: not both")
    if len(ports) < 2 or len(set(ports.values())) < 2:
        raise pytest.UsageError("--node-serial and --gateway-serial: two ports")
    return Plan("named by port", ports)
