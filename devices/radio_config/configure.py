"""Setting one radio up: compare, write what differs, wait for its restart, compare again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devices.radio_config.channel_key import ChannelKey
from devices.radio_config.library import Link, Timing, quiet
from devices.radio_config.plan import (
    Difference,
    Snapshot,
    as_wanted,
    check,
    differences,
    to_write,
    wants,
)
from devices.radio_config.settings import RadioConfig
from qis_edge.core.errors import LinkError

#: Times that a radio is written to. What the firmware sets by itself while it is written to is
#: right after the second.
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a radio.

    :param address: where it is. :param before: what it said at first, :param after: at last.
    :param changes: what differed at first, :param left: at last.
    """

    address: str
    before: Snapshot
    after: Snapshot
    changes: Sequence[Difference]
    left: Sequence[Difference]
    written: bool

    @property
    def agrees(self) -> bool:
        """Whether the radio is as wanted."""
        return not self.left


def configure(
    address: str,
    config: RadioConfig,
    key: ChannelKey,
    *,
    dry_run: bool = False,
    timing: Timing | None = None,
    say: Callable[[str, Done], None] = lambda _what, _done: None,
) -> Done:
    """Set a radio up.

    :param address: as for :func:`qis_edge.links.meshtastic_wire.connect`.
    :param say: is told how it goes: ``found``, then ``writing`` (perhaps ``interrupted``) and
        ``restarting``, as often as needed.
    :raises LinkError: the radio cannot be reached, refuses, or does not come back.
    """
    timing = timing or Timing()
    wanted = wants(config, key)
    with quiet():
        link = Link.open(address, timing)
        try:
            before = radio = link.read()
            check(radio, config)
            changes = left = differences(wanted, radio)
            done = Done(link.address, before, radio, changes, left, written=False)
            say("found", done)
            if dry_run or not changes:
                return done
            for _ in range(ROUNDS):
                say("writing", done)
                target = as_wanted(wanted, radio)
                try:
                    link.write(to_write(left), target, config.channel.index)
                except KeyboardInterrupt:
                    say("interrupted", done)
                    raise
                say("restarting", done)
                seen = link.restarted()
                link.close()
                link = _again(address, timing, radio.reboots, seen=seen)
                radio = link.read()
                left = differences(wanted, radio)
                done = Done(link.address, before, radio, changes, left, written=True)
                if not left:
                    break
            return done
        finally:
            link.close()


def look(address: str, timing: Timing | None = None) -> Snapshot:
    """What a radio says of itself.

    :raises LinkError: it cannot be reached.
    """
    with quiet():
        link = Link.open(address, timing or Timing())
        try:
            return link.read()
        finally:
            link.close()


def _again(address: str, timing: Timing, reboots: int, *, seen: bool) -> Link:
    """Connect to a radio that restarts.

    :param reboots: how often it had started before. :param seen: whether it was lost since;
        that will do for firmware that does not count.
    :raises LinkError: it does not come back, or did not restart.
    """
    end = time.monotonic() + timing.back
    while True:
        late = time.monotonic() >= end
        try:
            link = Link.open(address, timing)
        except LinkError as error:
            if late:
                raise LinkError(
                    f"the radio did not come back after its restart: {error}",
                    hint="plug it in anew, then run this again: it says what is still missing",
                ) from None
        else:
            if link.read().reboots != reboots or (late and seen):
                return link
            link.close()
            if late:
                raise LinkError(
                    "the radio did not restart after it was written to, so it may not keep what "
                    "it shows",
                    hint="take its power away for a moment, then run this again",
                )
        time.sleep(timing.retry)
