"""Estimating: what peers say, made into an estimate for each of our windows.

The synthesiser lives in memory and is fed as outcomes and packets come in. What it learned
is saved from time to time; after a restart it is fed again with what the inbox has of the
time since.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Sequence

from qis_edge.config import NodeConfig
from qis_edge.core.domain import Domain
from qis_edge.core.errors import Refused, StoreCorrupt, StoreError
from qis_edge.core.outcome import Outcome
from qis_edge.core.packet import Packet
from qis_edge.core.synthesis import (
    ESTIMATE_TAG,
    Estimate,
    PeerReport,
    Synthesiser,
    as_outcome,
)
from qis_edge.drivers import load_callable
from qis_edge.node.timekeeping import Timekeeper
from qis_edge.store.inbox import Inbox
from qis_edge.worker import Disk, Worker

log = logging.getLogger(__name__)

__all__ = ["ESTIMATE_TAG", "Estimating", "as_outcome"]

#: Where the inbox keeps what was learned: no peer has an empty kid.
_STATE = b""
#: Windows between saves.
SAVE_EVERY = 24
#: Seconds that the hook has to finish when we end.
HOOK_PATIENCE = 1.0
#: Packets of an address that a restart goes through.
MOST_PACKETS = 5000


class Estimating:
    """Feeds a synthesiser and asks it; calls the user's hook with what it says."""

    def __init__(
        self,
        config: NodeConfig,
        domain: Domain,
        inbox: Inbox,
        disk: Disk,
        clock: Timekeeper,
        me: bytes,
    ) -> None:
        self._config = config
        self._domain = domain
        self._inbox = inbox
        self._disk = disk
        self._clock = clock
        hook = config.synthesis.hook
        self._hook = None if hook is None else load_callable(hook)
        self._hook_worker = Worker("hook")
        self._hook_failed = False
        self._since_save = 0
        window = config.distil.window
        state, self._through = self._saved()
        self._synthesiser = Synthesiser(domain, window=window, me=me, state=state)
        self.made = 0
        self.hook_failures = 0

    # - feeding

    def heard(self, packets: Iterable[Packet]) -> None:
        """Peers' packets, verified."""
        now = self._clock.now()
        for packet in packets:
            estimate = ESTIMATE_TAG in packet.extensions.tags
            for outcome in packet.named(self._domain):
                self._synthesiser.heard(PeerReport(packet.kid, outcome, estimate), now)

    def measured(self, outcome: Outcome) -> None:
        """An outcome of our own, results by name."""
        self._synthesiser.measured(outcome)

    async def recall(self, address: bytes) -> None:
        """After a restart: go through what the inbox has of the time since the last save."""
        own = await self._disk(self._inbox.own)
        packets = await self._disk(
            self._inbox.query, address, limit=MOST_PACKETS, since=self._through
        )
        events: list[tuple[int, Outcome | Packet]] = [
            (outcome.time, outcome) for _, outcome in own if outcome.time >= self._through
        ]
        for packet in packets:
            with contextlib.suppress(Refused):  # it did not survive on the disk
                events.append((packet.last_time, packet))
        patience = 3 * self._config.distil.window
        for time, event in sorted(events, key=lambda pair: pair[0]):
            if isinstance(event, Packet):
                self.heard([event])
            else:
                self.measured(event)
            self._synthesiser.settle(time - patience)

    # - asking

    async def estimate(self, time: int) -> Estimate:
        """What is true in the window that starts then; the hook gets it."""
        now = self._clock.now()
        self._synthesiser.settle(now)
        made = self._synthesiser.estimate(time, now)
        self.made += bool(made.results)
        if self._hook is not None and made.results:
            await self._hook_worker(self._call, made)
        self._since_save += 1
        if self._since_save >= SAVE_EVERY:
            try:
                await self.save()
            except StoreCorrupt:
                raise
            except StoreError:  # said already; there will be more to save next time
                pass
        return made

    def _call(self, estimate: Estimate) -> None:
        """The user's code: whatever it raises is its own affair, said once."""
        assert self._hook is not None
        try:
            self._hook(estimate)
        except Exception:
            self.hook_failures += 1
            if not self._hook_failed:
                log.exception("the hook %s failed", self._config.synthesis.hook)
            self._hook_failed = True
        else:
            self._hook_failed = False

    @property
    def doubtful(self) -> Sequence[str]:
        """Results that our own sensors give and all peers contradict."""
        return self._synthesiser.doubtful

    # - keeping

    async def save(self) -> None:
        """Keep what was learned. :raises StoreError: the disk does not take it."""
        self._since_save = 0
        through = int(self._clock.now()) - 4 * self._config.distil.window
        text = json.dumps({"through": through, "learned": self._synthesiser.state()})
        await self._disk(self._inbox.keep_peer_states, {_STATE: text.encode()})

    def _saved(self) -> tuple[object, int]:
        raw = self._inbox.peer_states().get(_STATE)
        try:
            form = json.loads(raw) if raw else {}
            return form.get("learned"), int(form.get("through", 0))
        except (ValueError, TypeError, AttributeError):
            log.warning("what was learned of peers cannot be read: learning anew")
            return None, 0

    async def close(self) -> None:
        """Save, and end the hook's thread. :raises StoreError: see :meth:`save`."""
        self._hook_worker.close(HOOK_PATIENCE)
        await self.save()
