"""The gateways that a node knows: how they greet each other, and what a word of theirs is
worth.

A gateway is known once its credential led to the fleet's root. What it says in receipts,
greetings and positions is believed by its MAC; what everybody else says is not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from qis_edge.core.credential import GATEWAY, Credential, TrustStore
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity
from qis_edge.core.messages import NONCE_SIZE, Greeting, Hello, Position
from qis_edge.core.receipt import MacKeys, mac_keys
from qis_edge.links.base import BROKER_CADENCE

log = logging.getLogger(__name__)

#: Hellos whose greeting may still come.
_NONCES = 8
#: Seconds between doubts that are acted upon.
DOUBTS_EVERY = 30.0


@dataclass(slots=True)
class Gateway:
    """One that we know.

    :param epoch: 4 bytes of its last greeting, ``b""`` before the first.
    :param greeted: monotonic seconds of its last greeting since we started.
    """

    kid: bytes
    keys: MacKeys
    epoch: bytes = b""
    greeted: float | None = None


class Gateways:
    """Pure: bytes in, bytes out; time and randomness are arguments."""

    def __init__(self, identity: Identity, trust: TrustStore) -> None:
        self._identity = identity
        self._trust = trust
        self._known: dict[bytes, Gateway] = {}
        self._nonces: list[tuple[bytes, float]] = []  # with when they were said
        #: Of the link in use.
        self.cadence = BROKER_CADENCE
        #: Hellos since somebody greeted, or since the link came up.
        self.unanswered = 0
        self._said_at = self._doubted_at = float("-inf")
        self._hello_at = 0.0
        self._wanted = True  # whatever was answered meanwhile
        self._delay = self.cadence.hello

    # - who is known

    def learn(self, epochs: dict[bytes, bytes], now: float | None) -> None:
        """Know every gateway of the trust store, with the epochs that were kept."""
        for credential in self._trust.valid(GATEWAY, now):
            self._know(credential).epoch = epochs.get(credential.kid, b"")

    def add(self, credential: Credential) -> None:
        """A credential was accepted: if it is a gateway's, greet it anew soon."""
        if GATEWAY in credential.scope and credential.kid != self._identity.kid:
            self._know(credential)
            self.hello_soon()

    def _know(self, credential: Credential) -> Gateway:
        known = self._known.get(credential.kid)
        if known is None:
            keys = mac_keys(self._identity, gateway=credential.key, node=self._identity.public)
            known = self._known[credential.kid] = Gateway(credential.kid, keys)
        return known

    def __iter__(self) -> Iterator[Gateway]:
        return iter(self._known.values())

    def standing(self, kid: bytes, now: float | None) -> Gateway:
        """A gateway that may speak now.

        :raises Refused: UNKNOWN_KEY, REVOKED, EXPIRED, SCOPE.
        """
        self._trust.resolve(kid, now, GATEWAY)
        known = self._known.get(kid)
        if known is None:
            raise Refused(Reason.UNKNOWN_KEY, "gateway", kid.hex())
        return known

    def greeted(self, now: float | None) -> list[Gateway]:
        """Those whose receipts we can check: known, standing, and of a known epoch."""
        found = []
        for gateway in self._known.values():
            try:
                self.standing(gateway.kid, now)
            except Refused:
                continue
            if gateway.epoch:
                found.append(gateway)
        return found

    # - hello

    def hello_soon(self, when: float = 0.0) -> None:
        """Something changed (a link came up, a credential arrived): say hello at once, or at
        ``when`` (monotonic seconds)."""
        self._hello_at = when
        self._wanted = True
        self.unanswered = 0
        self._delay = self.cadence.hello

    def doubt(self, monotonic: float) -> None:
        """Nobody answers, or an answer cannot be checked: a gateway may have begun anew. Say
        hello as if nobody had greeted yet. Forged answers must not make us say it often."""
        if monotonic >= self._doubted_at + DOUBTS_EVERY:
            self._doubted_at = monotonic
            self._hello_at = min(self._hello_at, self._said_at + self._delay)

    @property
    def hello_at(self) -> float:
        """Monotonic seconds of the next hello."""
        return self._hello_at

    def hello(self, monotonic: float, nonce: bytes) -> bytes:
        """The next hello; ``nonce`` is 8 fresh random bytes."""
        assert len(nonce) == NONCE_SIZE
        self._nonces = [*self._nonces[1 - _NONCES :], (nonce, monotonic)]
        self._said_at = monotonic
        self._wanted = False
        late = self.cadence.jitter * nonce[0] / 255
        self._hello_at = monotonic + self._delay * (1 + late)
        self._delay = min(self._delay * 2, self.cadence.ungreeted)
        self.unanswered += 1
        return Hello(self._identity.kid, nonce, self._trust.revocation_number).encode()

    def greet(
        self, greeting: Greeting, monotonic: float, now: float | None, *, settled: bool = True
    ) -> tuple[Gateway, float]:
        """Take in a greeting; the caller compares its epoch with the gateway's before.

        :param settled: whether nothing more is wanted of gateways, so that hellos may be rare.
        :returns: whose it is, and the seconds since the hello that it answers.
        :raises Refused: not known, not its MAC, or the answer to no hello of ours.
        """
        known = self.standing(greeting.kid, now)
        for nonce, said_at in self._nonces:
            try:
                greeting.verify(known.keys.to_node, nonce)
            except Refused:
                continue
            known.greeted = monotonic
            self.unanswered = 0
            if settled and not self._wanted:
                self._hello_at = monotonic + self.cadence.greeted
                self._delay = self.cadence.hello
            return known, monotonic - said_at
        raise Refused(Reason.REPLAYED, "greeting.nonce", "no hello of ours waits for it")

    def position(self, position: Position, now: float | None) -> Gateway:
        """Check a position. :raises Refused: not known, or not its MAC."""
        known = self.standing(position.kid, now)
        position.verify(known.keys.to_node)
        return known
