"""Membership: the node's own standing, and what it knows of others' keys.

Credentials and revocation lists are believed by their signatures. Packets of keys that are
not known yet wait here, a few, while their credential is asked for, a few times.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

from qis_edge.core.credential import NODE, Credential, Enrolment, RevocationList, TrustStore
from qis_edge.core.errors import Reason, Refused
from qis_edge.core.identity import Identity, PublicKey
from qis_edge.core.messages import MAX_WANTED, EnrolmentMessage, Wanted

log = logging.getLogger(__name__)

#: Packets of one unknown key that wait for its credential, and such keys.
PARKED_EACH, PARKED_KEYS = 64, 64
#: Keys of which it is known when, and how often, they were asked for.
MAX_ASKED = 4 * PARKED_KEYS
#: Seconds between two questions, and until the same credential is asked for again.
ASK_EVERY, ASK_AGAIN = 1.0, 20.0
#: How often a credential is asked for. Nobody has it, then: its packets are dropped, and no
#: others are kept for so many seconds.
MOST_ASKS, GIVEN_UP = 3, 600.0
#: Presentations that anybody can ask for: a few at once, and one more per so many seconds.
PRESENT_BURST, PRESENT_EVERY = 8, 5.0


@dataclass(slots=True)
class _Asked:
    times: int = 0
    last: float = float("-inf")


class Membership:
    """Pure: what to send is returned, time is an argument.

    :param name: goes into the enrolment.
    """

    def __init__(self, identity: Identity, name: str, trust: TrustStore) -> None:
        self._identity = identity
        #: How many times as long everything takes on the link in use.
        self.pace = 1.0
        self._name = name
        self._trust = trust
        self._asked: OrderedDict[bytes, _Asked] = OrderedDict()
        self._parked: OrderedDict[bytes, list[bytes]] = OrderedDict()
        self._question_at = float("-inf")
        self._presented_until = float("-inf")  # what was presented uses up the time to here
        self.dropped = 0  # packets that waited in vain

    # - ourselves

    @property
    def credential(self) -> Credential | None:
        """Our own, if we have one."""
        return self._trust.credential(self._identity.kid)

    @property
    def revocation(self) -> RevocationList | None:
        """The newest revocation list."""
        return self._trust.revocation

    def enrolled(self, now: float | None) -> bool:
        """Whether our credential is good."""
        try:
            self._trust.resolve(self._identity.kid, now, NODE)
        except Refused:
            return False
        return True

    def present(self, now: float | None, monotonic: float) -> list[bytes]:
        """What to show to who asks for us: our credentials, or that we want to join.

        :raises Refused: FLOODED, we did so lately, and often.
        """
        used = max(self._presented_until, monotonic)
        if used > monotonic + (PRESENT_BURST - 1) * PRESENT_EVERY:
            raise Refused(Reason.FLOODED, "wanted")
        self._presented_until = used + PRESENT_EVERY
        if self.enrolled(now):
            return list(self._trust.chain(self._identity.kid))
        return [EnrolmentMessage(Enrolment.make(self._identity, self._name)).encode()]

    # - others

    def key(self, kid: bytes, now: float | None) -> PublicKey:
        """The key of a peer. :raises Refused: UNKNOWN_KEY, REVOKED, EXPIRED, SCOPE."""
        return self._trust.resolve(kid, now, NODE)

    def miss(self, kid: bytes, monotonic: float) -> bool:
        """Ask for this key's credential; whether there is still hope for one."""
        asked = self._asked.setdefault(kid, _Asked())
        self._asked.move_to_end(kid)
        if len(self._asked) > MAX_ASKED:
            self._asked.popitem(last=False)
        if asked.times >= MOST_ASKS and monotonic >= asked.last + GIVEN_UP * self.pace:
            asked.times = 0
        return asked.times < MOST_ASKS or monotonic < asked.last + ASK_AGAIN * self.pace

    def park(self, kid: bytes, raw: bytes, monotonic: float) -> None:
        """Keep a packet until its sender is known; the oldest key's go when it gets tight."""
        if not self.miss(kid, monotonic):
            self.dropped += 1
            return
        waiting = self._parked.setdefault(kid, [])
        if raw in waiting:
            return
        if len(waiting) < PARKED_EACH:
            waiting.append(raw)
        else:
            self.dropped += 1
        if len(self._parked) > PARKED_KEYS:
            oldest, packets = self._parked.popitem(last=False)
            self.dropped += len(packets)
            if not self._asked[oldest].times:  # nothing waits for it any more
                del self._asked[oldest]

    @property
    def parked(self) -> frozenset[bytes]:
        """The keys for whose credentials packets wait."""
        return frozenset(self._parked)

    def unpark(self, kid: bytes) -> list[bytes]:
        """The packets that waited for this key."""
        return self._parked.pop(kid, [])

    def question(self, monotonic: float) -> bytes | None:
        """A message that asks for the credentials that we miss, when it is time for one.
        Those that nobody had are given up."""
        for kid in [kid for kid in self._parked if self._in_vain(kid, monotonic)]:
            self.dropped += len(self._parked.pop(kid))
        if monotonic < self._question_at:
            return None
        kids = [
            kid
            for kid, asked in self._asked.items()
            if asked.times < MOST_ASKS and monotonic >= asked.last + ASK_AGAIN * self.pace
        ]
        if not kids:
            return None
        self._question_at = monotonic + ASK_EVERY * self.pace
        kids = kids[:MAX_WANTED]
        for kid in kids:
            self._asked[kid].times += 1
            self._asked[kid].last = monotonic
        return Wanted(tuple(sorted(kids))).encode()

    def _in_vain(self, kid: bytes, monotonic: float) -> bool:
        asked = self._asked.get(kid)
        return asked is None or (
            asked.times >= MOST_ASKS and monotonic >= asked.last + ASK_AGAIN * self.pace
        )

    @property
    def question_at(self) -> float:
        """Monotonic seconds at which :meth:`question` may have something to say or give up."""
        times = [
            asked.last + ASK_AGAIN * self.pace
            for kid, asked in self._asked.items()
            if asked.times < MOST_ASKS or kid in self._parked
        ]
        return max(self._question_at, min(times, default=float("inf")))

    # - what comes in

    def accept(self, raw: bytes, now: float | None) -> tuple[Credential, bool]:
        """Take in a credential.

        :returns: the one that stands for its key now, and whether it is news, to be kept.
        :raises Refused: it does not lead to our root, or has had its day.
        """
        before = self._trust.credential(Credential.parse(raw).kid)
        credential = self._trust.add(raw, now)
        self._asked.pop(credential.kid, None)
        if credential == before:
            return credential, False
        if credential.kid == self._identity.kid:
            log.info("joined the fleet as %s", credential.subject)
        return credential, True

    def revoke(self, raw: bytes) -> RevocationList | None:
        """Take in a revocation list; ``None`` where it is not news. :raises Refused:"""
        if not self._trust.apply(raw):
            return None
        made = self._trust.revocation
        assert made is not None
        log.warning("revocation list %d: %d keys are out", made.number, len(made.kids))
        if self._identity.kid in made.kids:
            log.error("our own key was revoked: no gateway takes our packets any more")
        return made


def is_ours(refusal: Refused) -> bool:
    """Whether a credential may mend it."""
    return refusal.reason in (Reason.UNKNOWN_KEY, Reason.EXPIRED, Reason.CHAIN)
