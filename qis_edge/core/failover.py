"""Which of several links to use: the most preferred that works, without flapping.

Pure: events and monotonic seconds in, an index and the next deadline out. A link *works*
while it is up and somebody at its other end answers; one that stays without an answer is
passed over for a while, and then tried again. An outage is over when the link has been up
for as long as an outage may last: one that keeps coming for a moment does not work. ::

    chooser.up(0, now); chooser.silent(0, now); chooser.answered(1, now)
    chooser.choose(now)        # the index to use from now on
    chooser.next_deadline(now) # when to ask again, if nothing happens
"""

from __future__ import annotations

from dataclasses import dataclass

from qis_edge.core.checks import require

_NEVER = float("-inf")


@dataclass(slots=True)
class _State:
    """One link's. Monotonic seconds."""

    up: bool
    since: float  # it has been up, or down
    out_since: float  # the last outage began
    suspended: float = _NEVER  # until then nobody is expected to answer
    strikes: int = 0  # silences without an answer between them

    def usable(self, now: float) -> bool:
        return self.up and now >= self.suspended


class Chooser:
    """The policy, over links in the order of preference. Times in seconds.

    :param after: how long the one in use may be down before another takes its place.
    :param settle: how long a preferred one must have been up before it is used again.
    :param retry: how long one that did not answer is passed over; doubles each time.
    :param longest: and at most.
    """

    def __init__(
        self,
        count: int,
        now: float,
        *,
        after: float = 30.0,
        settle: float = 60.0,
        retry: float = 300.0,
        longest: float = 3600.0,
    ) -> None:
        require(count >= 1, "count", "must be 1 or more")
        self._links = [_State(False, now, now) for _ in range(count)]
        self._after = after
        self._settle = settle
        self._retry = retry
        self._longest = longest
        self.current = 0

    def up(self, index: int, now: float) -> None:
        """This link came up."""
        link = self._links[index]
        if not link.up:
            link.up, link.since = True, now

    def down(self, index: int, now: float) -> None:
        """This link went down."""
        link = self._links[index]
        if link.up:
            if now - link.since >= self._after:
                link.out_since = now
            link.up, link.since = False, now

    def silent(self, index: int, now: float) -> None:
        """It is up, and nobody answers."""
        link = self._links[index]
        if not link.usable(now):
            return
        wait = min(self._retry * 2.0 ** min(link.strikes, 32), self._longest)
        link.suspended, link.strikes = now + wait, link.strikes + 1

    def answered(self, index: int, now: float) -> None:
        """A gateway's authentic word came over this link."""
        link = self._links[index]
        link.suspended, link.strikes = min(link.suspended, now), 0

    def choose(self, now: float) -> int:
        """The link to use from now on: an index. Asking again changes nothing."""
        better = self._better(now)
        if better is not None:
            self.current = better
        return self.current

    def _better(self, now: float) -> int | None:
        current = self._links[self.current]
        usable = [i for i, link in enumerate(self._links) if link.usable(now)]
        if not usable or usable[0] == self.current:
            return None if usable or current.up else self._any_up()
        first = usable[0]
        if current.usable(now):
            settled = (i for i in usable if now - self._links[i].since >= self._settle)
            best = next(settled, self.current)
            return best if best < self.current else None
        if first < self.current or current.up or now - current.out_since >= self._after:
            return first
        return None

    def _any_up(self) -> int | None:
        """Nobody answers anywhere: any way is better than none."""
        return next((i for i, link in enumerate(self._links) if link.up), None)

    def next_deadline(self, now: float) -> float | None:
        """When :meth:`choose` may say something else, if nothing happens."""
        times = [link.suspended for link in self._links if link.up]
        times += [link.since + self._settle for link in self._links[: self.current] if link.up]
        current = self._links[self.current]
        if not current.up:
            times.append(current.out_since + self._after)
        return min((time for time in times if time > now), default=None)
