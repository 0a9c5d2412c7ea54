"""What happens to the fleet, told over the links: each piece of news to those whom it concerns.

News of a node go where it was heard, and everywhere if it was heard nowhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from gateway.desk import FleetDesk
from gateway.fleet import Fleet
from gateway.front import Front
from qis_edge.clock import Clock
from qis_edge.core.credential import NODE, RevocationList
from qis_edge.core.errors import StoreCorrupt, StoreError
from qis_edge.core.identity import Identity
from qis_edge.worker import Disk

log = logging.getLogger(__name__)

#: Seconds between looks at what other processes changed in the fleet's file.
REFRESH = 0.5


class FleetWatch:
    """Takes in what is new of the fleet.

    :param fronts: looked at when there is something to tell; may still grow.
    """

    def __init__(
        self,
        identity: Identity,
        fleet: Fleet,
        disk: Disk,
        clock: Clock,
        fronts: Sequence[Front],
    ) -> None:
        self._identity = identity
        self._fleet = fleet
        self._disk = disk
        self._clock = clock
        self._fronts = fronts
        self.rounds = 0  # that they go on shows that the gateway lives

    async def run(self) -> None:
        """Take in, for ever, what other processes do to the fleet, and write our counts."""
        while True:
            await asyncio.sleep(REFRESH)
            try:
                await self.refresh()
            except StoreCorrupt:
                raise
            except StoreError:  # said already
                pass
            for front in self._fronts:
                front.desk.nudge(time.monotonic())
            self.rounds += 1

    async def refresh(self) -> None:
        """Look once; new credentials and lists go out to those whom they concern."""
        changes = await self._disk(self._fleet.refresh, self._clock.now())
        for credential in changes.credentials:
            if NODE in credential.scope:
                for desk in self._where(credential.kid):
                    desk.tell_chain(credential.kid)
        if changes.revocation is not None:
            self.revoked(changes.revocation)
        await self._disk(self._fleet.flush)

    def _where(self, kid: bytes) -> list[FleetDesk]:
        desks = [front.desk for front in self._fronts]
        return [desk for desk in desks if desk.present(kid)] or desks

    def revoked(self, made: RevocationList) -> None:
        """A list is in force from now on, however it came."""
        log.info("revocation list %d is in force: %d keys are out", made.number, len(made.kids))
        if self._identity.kid in made.kids:
            log.error("this gateway's own key was revoked: nodes believe it no more")
        for front in self._fronts:
            for kid in made.kids:
                front.downlink.forget(kid)
        told: dict[FleetDesk, list[bytes]] = {}
        for credential in self._fleet.valid(NODE, self._clock.now()):
            for desk in self._where(credential.kid):
                told.setdefault(desk, []).append(credential.kid)
        for desk, kids in told.items():
            desk.tell_revocation(made, kids)

    def moved(self, kid: bytes, here: Front) -> None:
        """A node asks over this link now: the others have nothing for it any more."""
        for front in self._fronts:
            if front is not here:
                front.downlink.forget(kid)
