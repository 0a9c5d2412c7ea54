"""Membership: the node's own standing, and what it knows of others' keys.

Credentials and revocation lists are believed by their signatures and kept in the inbox.
Packets of keys that are not known yet wait here, a few, while their credential is asked
for.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from qis_edge.core.credential import NODE, Credential, Enrolment, RevocationList, TrustStore
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import EnrolmentMessage, Wanted

log = logging.getLogger(__name__)

#: Packets of one unknown key that wait for its credential, and such keys.
PARKED_EACH, PARKED_KEYS = 64, 64
#: Seconds until a credential is asked for again.
ASK_AGAIN = 20.0


class Membership:
    """Pure: what to send is returned, what to keep is told to ``keep``.

    :param name: goes into the enrolment.
    :param keep: is given credentials and revocation lists that were accepted.
    """

    def __init__(
        self,
        identity: Identity,
        name: str,
        trust: TrustStore,
        keep: Callable[[Credential | RevocationList], None],
    ) -> None:
        self._identity = identity
        self._name = name
        self._trust = trust
        self._keep = keep
        self._asked: OrderedDict[bytes, float] = OrderedDict()
        self._parked: OrderedDict[bytes, list[bytes]] = OrderedDict()

    # - ourselves

    @property
    def credential(self) -> Credential | None:
        """Our own, if we have one."""
        return self._trust.credential(self._identity.kid)

    def enrolled(self, now: float | None) -> bool:
        """Whether our credential is good."""
        try:
            self._trust.resolve(self._identity.kid, now, NODE)
        except Refused:
            return False
        return True

    def present(self, now: float | None) -> list[bytes]:
        """What to show to who asks for us: our credentials, or that we want to join."""
        if self.enrolled(now):
            return list(self._trust.chain(self._identity.kid))
        return [EnrolmentMessage(Enrolment.make(self._identity, self._name)).encode()]

    # - others

    def key(self, kid: bytes, now: float | None) -> PublicKey:
        """The key of a peer. :raises Refused: UNKNOWN_KEY, REVOKED, EXPIRED, SCOPE."""
        return self._trust.resolve(kid, now, NODE)

    def ask(self, kid: bytes, monotonic: float) -> bytes | None:
        """A message that asks for this key's credential, unless we just did."""
        asked = self._asked.get(kid)
        if asked is not None and monotonic < asked + ASK_AGAIN:
            return None
        self._asked[kid] = monotonic
        self._asked.move_to_end(kid)
        if len(self._asked) > 4 * PARKED_KEYS:
            self._asked.popitem(last=False)
        return Wanted((kid,)).encode()

    def park(self, kid: bytes, raw: bytes) -> None:
        """Keep a packet until its sender is known; the oldest key's go when it gets tight."""
        waiting = self._parked.setdefault(kid, [])
        if len(waiting) < PARKED_EACH and raw not in waiting:
            waiting.append(raw)
        if len(self._parked) > PARKED_KEYS:
            self._parked.popitem(last=False)

    @property
    def parked(self) -> int:
        """How many packets wait for their senders' credentials."""
        return sum(len(waiting) for waiting in self._parked.values())

    def unpark(self, kid: bytes) -> list[bytes]:
        """The packets that waited for this key."""
        return self._parked.pop(kid, [])

    # - what comes in

    def accept(self, raw: bytes, now: float | None) -> Credential:
        """Take in a credential. :raises Refused: it does not lead to our root, or has had
        its day."""
        before = self._trust.credential(self._identity.kid)
        credential = self._trust.add(raw, now)
        if credential.raw == raw:
            self._keep(credential)
        self._asked.pop(credential.kid, None)
        if credential.kid == self._identity.kid and credential != before:
            log.info("joined the fleet as %s", credential.subject)
        return credential

    def revoke(self, raw: bytes) -> RevocationList | None:
        """Take in a revocation list; ``None`` where it is not news. :raises Refused:"""
        if not self._trust.apply(raw):
            return None
        made = self._trust.revocation
        assert made is not None
        self._keep(made)
        log.warning("revocation list %d: %d keys are out", made.number, len(made.kids))
        if self._identity.kid in made.kids:
            log.error("our own key was revoked: no gateway takes our packets any more")
        return made


def is_ours(refusal: Refused) -> bool:
    """Whether a credential may mend it."""
    return refusal.reason in (Reason.UNKNOWN_KEY, Reason.EXPIRED, Reason.CHAIN)
