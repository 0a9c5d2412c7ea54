"""QIS Edge: outcomes from the field, signed, stored, forwarded and learned from.

The main path, from what a node saw to what a stranger may believe::

    from qis_edge import Domain, Identity, Outcome, pack, unpack

    weather = Domain.load("weather")
    here = weather.situation(climate="cfa", terrain="coast", season="winter")
    me = Identity.generate()

    packet = pack(
        [Outcome(time=1357000000, samples=60, results={"temperature": 3.9})],
        identity=me, fingerprint=here.fingerprint, store=bytes(4), sequence=0,
        domain=weather,
    )
    assert len(packet.raw) <= 512

    seen = unpack(packet.raw, me.public)   # raises Refused, and says why
    seen.named(weather)[0].results         # {"temperature": 3.9}

:func:`pack` is in :mod:`qis_edge.core.packet`. A node runs :mod:`qis_edge.node.runtime`,
which keeps outcomes in :mod:`qis_edge.store.outbox` and sends them over the links of
:mod:`qis_edge.links`; the other side is the package ``gateway``.
"""

from __future__ import annotations

from qis_edge.core.domain import Domain, Situation
from qis_edge.core.errors import QisError, Refused
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.outcome import Kind, Outcome
from qis_edge.core.packet import Extensions, Packet, pack, unpack


def _load_domain(name: str) -> Domain:
    from qis_edge.domains import load

    return load(name)


Domain.install_loader(_load_domain)


def __getattr__(name: str) -> str:
    """``__version__``, when somebody asks: looking it up takes longer than all the rest."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("qis-edge")
    except PackageNotFoundError:  # imported from a folder that was never installed
        return "0+unknown"


__all__ = [
    "Domain",
    "Extensions",
    "Identity",
    "Kind",
    "Outcome",
    "Packet",
    "PublicKey",
    "QisError",
    "Refused",
    "Situation",
    "pack",
    "unpack",
]
