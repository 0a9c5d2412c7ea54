"""What both sides hear with: frames in, messages out.

A receiver puts tiles together, restores elided packets (the signature decides which of the
contexts that match it was), and hands each packet up once. A gateway's also answers: it
turns a question ("which of these do you have?", or a frame that asks) into :class:`Asked`,
and what it is then told about those sequences into one frame::

    for event in receiver.take(radio, data, now):
        match event:
            case Message():  ...  # verify, commit
            case Asked():    ...  # when all before it is committed: receipts, then
                receiver.answer(event, receipts, now)
            case Answer() | Missing() | Unknown():  ...  # the sender's, see there
    while frame := receiver.next(now):
        ...                       # send it
    receiver.next_deadline()      # when to ask again, if nothing happens
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from qis_edge.core.checks import require
from qis_edge.core.errors import Reason, Refused, UsageError
from qis_edge.core.mesh.allowance import Allowance
from qis_edge.core.mesh.echo import Echo
from qis_edge.core.mesh.elision import Context, Contexts, restore
from qis_edge.core.mesh.fragments import Reassembly
from qis_edge.core.mesh.framing import (
    DEFAULT_FRAME,
    MAX_FRAME,
    MAX_PARTS,
    MIN_FRAME,
    PONG_SIZE,
    Answer,
    Batch,
    Elided,
    Missing,
    Part,
    Ping,
    Poll,
    Pong,
    Signal,
    Tile,
    Unknown,
    Whole,
    answer_room,
    decode,
    decode_cut,
    packed_size,
)
from qis_edge.core.packet import Packet

_PACKET = b"\xd2\x84"
#: It is not this context's: it does not verify, or nobody knows that key any more.
_NOT_THIS_ONE = (Reason.SIGNATURE, Reason.UNKNOWN_KEY)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of ``docs/wire-format.md``.

    :param radio: the number that its frame names: not authenticated.
    :param packet: if it is a packet, and its signature verified.
    """

    raw: bytes
    radio: int
    packet: Packet | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A node wants to know what became of packets.

    Receipts about them, for all that was received before, are the answer; none, if nothing
    is held. It is not authenticated: answering is all that it is good for.

    :param stores: (kid, store): nearly always one.
    :param sequences: ascending.
    """

    context: bytes
    round: int
    radio: int
    stores: tuple[tuple[bytes, bytes], ...]
    sequences: tuple[int, ...]


Event = Message | Asked | Answer | Missing | Unknown


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a receiver keeps and says, whatever arrives. Times in seconds.

    :param contexts: contexts remembered.
    :param partials: partly received messages, for radios known lately and for others each.
    :param per_radio: and of those, of one radio (half, if it is not known).
    :param waiting: frames kept whose context is not known yet.
    :param seen: packets remembered as handed up, for ``remember`` seconds.
    :param known_for: how long a radio counts as known after a packet that verified.
    :param unknowns: how often in a row to say that a context is unknown or tiles are
        missing; one more every ``unknown_every`` seconds.
    :param answers: frames that may wait to be sent.
    :param gateways: radios remembered as gateways'.
    :param pongs: pings answered in a row; one more every ``pong_every`` seconds.
    :param pongs_waiting: pongs that may wait to be sent, the newest of them.
    :param pong_slot: one of eight such times a pong waits, not to meet another gateway's.
    :param tile_wait: how long to wait for tiles before asking for them, at most
        ``tile_asks`` times.
    """

    contexts: int = 1024
    partials: int = 64
    per_radio: int = 16
    waiting: int = 32
    seen: int = 2048
    remember: float = 3600.0
    known_radios: int = 256
    known_for: float = 86400.0
    pending: int = 64
    stores: int = 256
    unknowns: int = 8
    unknown_every: float = 10.0
    same_unknown_every: float = 20.0
    tile_wait: float = 60.0
    tile_asks: int = 3
    answers: int = 32
    gateways: int = 16
    pongs: int = 32
    pong_every: float = 20.0
    pongs_waiting: int = 4
    pong_slot: float = 0.5

    @classmethod
    def of(cls, airtime: Callable[[int], float], duty_cycle: float = 1.0) -> Limits:
        """With timers from airtime.

        :param airtime: seconds of a frame of so many bytes.
        :param duty_cycle: of all here: between two tiles their sender may have to wait,
            and pongs get at most a quarter of ours.
        """
        longest = airtime(DEFAULT_FRAME)
        return cls(
            tile_wait=5.0 + 4 * longest / duty_cycle,
            unknown_every=5 * longest,
            same_unknown_every=10 * longest,
            pong_every=4 * airtime(PONG_SIZE) / duty_cycle,
            pong_slot=airtime(PONG_SIZE),
        )

    def echo(self) -> Echo:
        """What answers pings within these limits."""
        return Echo(self.pongs, self.pong_every, self.pongs_waiting, self.pong_slot)


@dataclass(slots=True)
class _Radio:
    """A radio whose packets verified lately."""

    heard_at: float
    context: Context


class Receiver:
    """The machine.

    :param verify: ``unpack`` with the keys that are known: gives the packet, or raises
        ``Refused``.
    :param answers: whether it says anything: a gateway's does, a node's only listens.
    :param frame: bytes that a frame of ours may have.
    :param echo: whether it answers pings even if it answers nothing else.
    """

    def __init__(
        self,
        verify: Callable[[bytes], Packet],
        *,
        answers: bool,
        frame: int = DEFAULT_FRAME,
        limits: Limits | None = None,
        echo: bool = False,
    ) -> None:
        require(MIN_FRAME <= frame <= MAX_FRAME, "frame", f"must be {MIN_FRAME}..{MAX_FRAME}")
        self._verify = verify
        self._answers = answers
        self._frame = frame
        self.limits = limits = limits or Limits()
        self.contexts = Contexts(limits.contexts)
        self.duplicates = 0  # packets that came again
        self.unrestored = 0  # elided frames that no known context made whole
        self._tiles = Reassembly(capacity=limits.partials, per_radio=limits.per_radio)
        self._known: OrderedDict[int, _Radio] = OrderedDict()
        self._gateways: OrderedDict[int, None] = OrderedDict()
        self._highest: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()
        self._waiting: deque[tuple[int, Elided]] = deque()
        self._seen: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()  # id and kid
        self._pending: OrderedDict[tuple[bytes, bytes], dict[int, None]] = OrderedDict()
        self._allowed = Allowance(limits.unknowns, limits.unknown_every)
        self._said_unknown: OrderedDict[bytes, float] = OrderedDict()
        self._out: deque[tuple[bytes, bytes]] = deque()  # with what each is about
        self._echoes = answers or echo
        self._echo = limits.echo()

    # --- in -----------------------------------------------------------------------------

    def take(
        self, radio: int, data: bytes, now: float, signal: Signal | None = None
    ) -> list[Event]:
        """A frame came in.

        :param radio: the number that it names as its sender's.
        :param signal: how it was heard, if the radio told.
        :raises Refused: it, or what it completes, is not acceptable; nothing else happened.
        """
        frame = decode(data)
        if isinstance(frame, Tile):
            return self._tile(radio, frame, now)
        if isinstance(frame, Elided | Whole):
            return self._content(radio, frame, now)
        if isinstance(frame, Poll):
            return self._polled(radio, frame, now)
        if isinstance(frame, Ping | Pong):
            if isinstance(frame, Ping) and self._echoes:
                self._echo.take(frame, signal, now)
            return []
        events: list[Event] = []
        if isinstance(frame, Answer | Batch):
            events += [Message(message, radio) for message in frame.messages]
        if isinstance(frame, Answer | Unknown):
            self.note_gateway(radio)
        if not isinstance(frame, Batch):
            events.append(frame)
        return events

    def _tile(self, radio: int, tile: Tile, now: float) -> list[Event]:
        known = self._is_known(radio, now)
        data = self._tiles.take(radio, tile, now, known=known is not None)
        if data is not None:
            frame = decode_cut(data)
            return self._content(radio, replace(frame, ask=tile.ask), now)
        if tile.ask and known is not None:
            return self._asked(radio, known.context)
        return []

    def _content(self, radio: int, frame: Elided | Whole, now: float) -> list[Event]:
        if isinstance(frame, Whole):
            if not frame.message.startswith(_PACKET):
                return [Message(frame.message, radio)]
            return self._whole(radio, frame, now)
        packet = self._restored(frame)
        if packet is None:
            self._unknown(radio, frame, now)
            return []
        return self._verified(radio, packet, frame.ask, now)

    def _whole(self, radio: int, frame: Whole, now: float) -> list[Event]:
        try:
            packet = self._verify(frame.message)
        except Refused as refusal:
            if refusal.reason is Reason.SIGNATURE:
                raise
            return [Message(frame.message, radio)]  # whose key is not known, say: not for us
        return self._verified(radio, packet, frame.ask, now)

    def _restored(self, frame: Elided) -> Packet | None:
        """The packet, by the context that verifies; ``None``: none of those that we know.

        :raises Refused: it verifies, but is refused for another reason.
        """
        refusal: Refused | None = None
        for context in self.contexts.match(frame.context):
            try:
                return self._verify(restore(context, frame.rest))
            except Refused as caught:
                if caught.reason not in _NOT_THIS_ONE:
                    refusal = caught
        if refusal is not None:
            raise refusal
        return None

    def _verified(self, radio: int, packet: Packet, ask: bool, now: float) -> list[Event]:
        context = Context.of(packet)
        news = self.contexts.learn(context)
        self._note_radio(radio, packet, context, now)
        self._note_pending(packet)
        events: list[Event] = []
        if self._first_time((packet.id, packet.kid), now):
            events.append(Message(packet.raw, radio, packet))
        else:
            self.duplicates += 1
        if news:
            events += self._learned(context.name, now)
        if ask:
            events += self._asked(radio, context)
        return events

    def _learned(self, name: bytes, now: float) -> list[Event]:
        """A context is new: what waited for it may be restored now."""
        waited = [item for item in self._waiting if item[1].context == name]
        self._waiting = deque(item for item in self._waiting if item[1].context != name)
        events: list[Event] = []
        for radio, frame in waited:
            try:
                packet = self._restored(frame)
            except Refused:
                continue
            if packet is not None:
                events += self._verified(radio, packet, False, now)
        return events

    def _first_time(self, key: tuple[bytes, bytes], now: float) -> bool:
        # An id does not cover whose packet it is: anybody can sign the same payload anew.
        while self._seen and now - next(iter(self._seen.values())) >= self.limits.remember:
            self._seen.popitem(last=False)
        if key in self._seen:
            return False
        self._seen[key] = now
        if len(self._seen) > self.limits.seen:
            self._seen.popitem(last=False)
        return True

    def forget(self, packet_id: bytes) -> None:
        """It was handed up, but nobody could take it: hand it up again when it comes again."""
        for key in [key for key in self._seen if key[0] == packet_id]:
            del self._seen[key]

    # --- who is known ---------------------------------------------------------------------

    def _is_known(self, radio: int, now: float) -> _Radio | None:
        known = self._known.get(radio)
        if known is None or now - known.heard_at >= self.limits.known_for:
            return None
        return known

    def _note_radio(self, radio: int, packet: Packet, context: Context, now: float) -> None:
        """Only a packet later than all before makes its radio known: a recording of old
        ones, played from other numbers, does not."""
        place = (packet.kid, packet.store)
        highest = self._highest.get(place, -1)
        if packet.sequence > highest:
            self._highest[place] = packet.sequence
            self._known[radio] = _Radio(now, context)
        self._highest.move_to_end(place)
        if radio in self._known:
            self._known[radio].heard_at = now
            self._known.move_to_end(radio)
        if len(self._highest) > self.limits.contexts:
            self._highest.popitem(last=False)
        if len(self._known) > self.limits.known_radios:
            self._known.popitem(last=False)

    def note_gateway(self, radio: int) -> None:
        """This radio is a gateway's, it seems (answers are noted by themselves). A node
        asks gateways for missing tiles, and not the peers whose way up it overhears."""
        self._gateways[radio] = None
        self._gateways.move_to_end(radio)
        if len(self._gateways) > self.limits.gateways:
            self._gateways.popitem(last=False)

    def _wants_tiles_of(self, radio: int) -> bool:
        return self._answers or radio in self._gateways

    # --- questions ------------------------------------------------------------------------

    def _note_pending(self, packet: Packet) -> None:
        if not self._answers:
            return
        pending = self._pending.setdefault((packet.kid, packet.store), {})
        pending[packet.sequence] = None
        if len(pending) > self.limits.pending:
            del pending[next(iter(pending))]
        self._pending.move_to_end((packet.kid, packet.store))
        if len(self._pending) > self.limits.stores:
            self._pending.popitem(last=False)

    def _asked(self, radio: int, context: Context) -> list[Event]:
        """A frame asks: about all that came of its store since the last question."""
        if not self._answers:
            return []
        place = (context.kid, context.store)
        sequences = tuple(sorted(self._pending.pop(place, ())))
        return [Asked(context.name, 0, radio, (place,), sequences)]

    def _polled(self, radio: int, poll: Poll, now: float) -> list[Event]:
        if not self._answers:
            return []
        contexts = self.contexts.match(poll.context)
        if not contexts:
            self._say_unknown(poll.context, now)
            return []
        places = tuple(dict.fromkeys((context.kid, context.store) for context in contexts))
        for place in places:
            self._pending.pop(place, None)
        return [Asked(poll.context, poll.round, radio, places, poll.sequences)]

    def answer(self, asked: Asked, receipts: Iterable[bytes], now: float) -> None:
        """Answer a question with sealed receipts, and with what is partly here.

        What does not fit the frame is left out: it will be asked about again.

        :param receipts: at most 255 bytes each.
        """
        messages: list[bytes] = []
        room = answer_room(self._frame, 0)
        for receipt in receipts:
            if len(receipt) > 255:
                raise UsageError("longer than a frame carries", field="receipts")
            if packed_size((*messages, receipt)) <= room:
                messages.append(receipt)
        parts = self._tiles.parts(asked.radio)
        while parts and packed_size(messages) > answer_room(self._frame, len(parts)):
            parts = parts[:-1]
        self._tiles.asked(asked.radio, now)
        answer = Answer(asked.context, asked.round, parts[:MAX_PARTS], tuple(messages))
        # A later question of a node replaces its earlier ones.
        self._out = deque(item for item in self._out if item[0] != asked.context)
        self._queue(asked.context, answer.encode())

    def _queue(self, about: bytes, frame: bytes) -> None:
        if len(self._out) < self.limits.answers:
            self._out.append((about, frame))

    def _unknown(self, radio: int, frame: Elided, now: float) -> None:
        """Keep it for when its context is known, and say that it is not."""
        self.unrestored += 1
        if self._answers:
            mine = [item for item in self._waiting if item[0] == radio]
            if len(mine) >= max(1, self.limits.waiting // 2):
                self._waiting.remove(mine[0])
            elif len(self._waiting) >= self.limits.waiting:
                self._waiting.popleft()
            if (radio, frame) not in self._waiting:
                self._waiting.append((radio, frame))
        self._say_unknown(frame.context, now)

    def _say_unknown(self, context: bytes, now: float) -> None:
        said = self._said_unknown.get(context, float("-inf"))
        recently = now - said < self.limits.same_unknown_every
        if not self._answers or recently or not self._allowed.take(now):
            return
        self._said_unknown[context] = now
        self._said_unknown.move_to_end(context)
        if len(self._said_unknown) > self.limits.stores:
            self._said_unknown.popitem(last=False)
        self._queue(b"", Unknown(context).encode())

    # --- out ------------------------------------------------------------------------------

    def next(self, now: float) -> bytes | None:
        """The next frame to send, or ``None``."""
        if self._out:
            return self._out.popleft()[1]
        if (pong := self._echo.next(now)) is not None:
            return pong
        part = self._overdue(now)
        return Missing(part).encode() if part is not None else None

    def _overdue(self, now: float) -> Part | None:
        limits = self.limits
        wanted = self._wants_tiles_of
        part = self._tiles.overdue(now, limits.tile_wait, limits.tile_asks, wanted)
        return part if part is not None and self._allowed.take(now) else None

    def next_deadline(self) -> float | None:
        """When :meth:`next` may next have something, if nothing comes in."""
        if self._out:
            return float("-inf")
        limits = self.limits
        wanted = self._wants_tiles_of
        overdue = self._tiles.next_overdue(limits.tile_wait, limits.tile_asks, wanted)
        return min(
            (t for t in (overdue, self._echo.next_deadline()) if t is not None), default=None
        )

    def partial(self) -> int:
        """How many messages are partly here."""
        return len(self._tiles)

    def waiting(self) -> Sequence[Elided]:
        """Frames whose context is not known yet."""
        return [frame for _, frame in self._waiting]
