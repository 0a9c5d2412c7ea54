"""The process that owns a shard: ``python -m gateway.routing.qdrant_shard PATH WAIT``.

Qdrant's embedded engine holds Python's lock in all that it does, tens of milliseconds to
sync and minutes to tidy up, so that no thread of the gateway would run meanwhile. Here it
has an interpreter of its own. One request after the other on the standard input, each
answered on the standard output; it ends with its input, so it never outlives its gateway.

A message is 4 bytes of length and CBOR: ``[verb, *arguments]``, answered by ``[True,
result]`` or ``[False, what went wrong]``. The first answer comes unasked: ``[True, token]``
once the shard is open.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import cbor2
import qdrant_edge as qd

from gateway.routing import qdrant_points as points
from gateway.routing.base import Entry, Interest, framed_fingerprint, is_framed
from gateway.routing.qdrant_points import Between, Condition, Is

#: The point that says whose shard it is, and which numbers were used.
FACTS = 0
#: The file that is locked.
LOCK = "lock"
#: Packets of the log that one slice gives.
SLICE = 1000
#: Points that one request of ``expire`` deletes.
EXPIRE_SLICE = 1000
#: It is tidied up once this many were deleted, and this share of what there is.
TIDY_LEAST = 20_000
TIDY_SHARE = 0.3
#: Candidates among which the newest of equally near are looked for.
TIES = 10_000
#: What of a payload is read: each more takes as long again.
READ = ["raw", "address", "time", "expires", "confidence", "values", "order"]
#: A packet as it travels between the two processes: the fields of an ``Entry``. Several
#: travel column by column, which takes a quarter of the time.
Row = tuple[Any, ...]
Columns = list[Sequence[Any]]
#: Fingerprint and bits of an interest, and what else is asked for.
Asked = Sequence[Any]


class Shard:
    """The shard and what is asked of it."""

    def __init__(self, path: Path, wait: float) -> None:
        """:param wait: seconds to wait for another process that has the shard open."""
        self.path = path
        self.refused = 0
        self._deleted = 0
        self._lock = _lock(path, wait)
        self._shard = _load_or_create(path)
        self.token, self.last = self._facts()

    def _facts(self) -> tuple[bytes, int]:
        """The token, drawn where there is none yet, and the last number used."""
        found = self._shard.retrieve([FACTS], with_payload=True, with_vector=False)
        facts = (found[0].payload or {}) if found else {}
        newest, _ = self._shard.scroll(
            qd.ScrollRequest(
                limit=1,
                filter=_filter([Between("seq", 0)]),
                with_payload=["seq"],
                with_vector=False,
                order_by=qd.OrderBy("seq", qd.Direction.Desc),
            )
        )
        last = max(facts.get("last", 0), *((r.payload or {})["seq"] for r in newest), 0)
        if not found:
            facts = {"token": os.urandom(8).hex(), "last": 0}
            self._put_facts(facts)
        return bytes.fromhex(facts["token"]), last

    def _put_facts(self, facts: dict[str, Any]) -> None:
        self._update(qd.UpdateOperation.upsert_points([qd.Point(FACTS, {}, facts)]))
        self._shard.flush()

    def _update(self, operation: qd.UpdateOperation) -> None:
        self._shard.update(operation)

    # --- what is asked -----------------------------------------------------------------

    def deposit(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Keep these; how many were new, and the last number of the log. On the disk when
        it returns."""
        fresh: dict[UUID, Entry] = {}
        entries = [Entry(*row) for row in rows]
        known = self._known(entries)
        for entry in entries:
            if entry.raw not in known:
                fresh.setdefault(UUID(bytes=entry.id[: points.ID]), entry)
        if fresh:
            made = [
                qd.Point(
                    point,
                    dict(points.vectors(entry)),
                    {**points.payload(entry, self.last + offset), "seq": self.last + offset},
                )
                for offset, (point, entry) in enumerate(fresh.items(), 1)
            ]
            self.last += len(made)  # before: what failed half-way has used its numbers
            self._update(qd.UpdateOperation.upsert_points(made))
        # Always: what is there already may be of a call that could not sync.
        self._shard.flush()
        return len(fresh), self.last

    def _known(self, entries: Sequence[Entry]) -> set[bytes]:
        ids: list[int | UUID | str] = [UUID(bytes=entry.id[: points.ID]) for entry in entries]
        found = self._shard.retrieve(ids, with_payload=["raw"], with_vector=False)
        # What is there under a packet's id and is not that packet gives way to it.
        return {raw for record in found if (raw := points.raw_of(record.payload)) is not None}

    def newest(self, asked: Asked, limit: int) -> Columns:
        """The newest first. :param asked: fingerprint, bits, since, confidence."""
        conditions = _asked(asked)
        return self._enough(limit, lambda most: self._newest(conditions, most))

    def _newest(
        self, conditions: Sequence[Condition], limit: int, but: Sequence[Condition] = ()
    ) -> list[qd.Record]:
        return self._scroll(conditions, "order", qd.Direction.Desc, limit, but)

    def _scroll(
        self,
        conditions: Sequence[Condition],
        by: str,
        direction: qd.Direction,
        limit: int,
        but: Sequence[Condition] = (),
    ) -> list[qd.Record]:
        if limit == 0:
            return []
        request = qd.ScrollRequest(
            limit=limit,
            filter=_filter(conditions, but),
            with_payload=READ,
            with_vector=False,
            order_by=qd.OrderBy(by, direction),
        )
        return self._shard.scroll(request)[0]

    def nearest(self, asked: Asked, limit: int, vector: Sequence[float]) -> Columns:
        """The nearest first; those without a like vector last, newest first."""
        conditions = _asked(asked)
        return self._enough(limit, lambda most: self._nearest(conditions, most, vector))

    def _nearest(
        self, conditions: Sequence[Condition], limit: int, vector: Sequence[float]
    ) -> list[qd.Record | qd.ScoredPoint]:
        if limit == 0:
            return []
        like = Is("length", len(vector))
        near = self._near([*conditions, like], limit, vector) if len(vector) <= points.SIZE else []
        if len(near) < limit:
            return [*near, *self._newest(conditions, limit - len(near), [like])]
        return near

    def _near(
        self, conditions: Sequence[Condition], limit: int, vector: Sequence[float]
    ) -> list[qd.Record | qd.ScoredPoint]:
        """The ``limit`` nearest, and of those that are as near as the last of them the
        newest: Qdrant itself takes any of them."""
        query: Any = qd.Query.Nearest(points.padded(vector), using=points.VECTOR)
        chosen, exact = _filter(conditions), qd.SearchParams(exact=True)
        found = self._shard.query(
            qd.QueryRequest(
                limit=limit + 1, query=query, filter=chosen, params=exact, with_payload=READ
            )
        )
        by_id = {str(point.id): point for point in found}
        if len(found) > limit and found[limit - 1].score - found[limit].score < points.NEAR:
            among = qd.Prefetch(
                limit=max(TIES, limit),
                query=query,
                filter=chosen,
                params=exact,
                score_threshold=found[limit - 1].score - points.NEAR,
            )
            newest = qd.OrderBy("order", qd.Direction.Desc)
            ties = self._shard.query(
                qd.QueryRequest(limit=limit, prefetches=[among], query=newest, with_payload=READ)
            )
            by_id.update((str(point.id), point) for point in ties)
        ranked = sorted(by_id.values(), key=lambda point: points.rank(point.payload, vector))
        return list(ranked[:limit])

    def slice(self, interests: Sequence[Asked] | None, after: int) -> tuple[Columns, int, bool]:
        """The packets of interest after a number of the log, how far was looked, and
        whether that was the end.

        :param interests: fingerprint and bits of each; ``None``: everything.
        """
        last = self.last
        places = None
        if interests is not None:
            places = [_filter(points.within(Interest(*interest))) for interest in interests]
            if not places:
                return [], last, True
        request = qd.ScrollRequest(
            limit=SLICE,
            filter=qd.Filter(
                must=[_condition(Between("seq", after + 1, last))],
                should=list(places) if places else None,
            ),
            with_payload=[*READ, "seq"],
            with_vector=False,
            order_by=qd.OrderBy("seq", qd.Direction.Asc),
        )
        found, _ = self._shard.scroll(request)
        if len(found) == SLICE:
            last = (found[-1].payload or {})["seq"]
        return list(zip(*self._rows(found), strict=True)), last, len(found) < SLICE

    def expire(self, now: int) -> int:
        """Delete some of what expired; how many."""
        found, _ = self._shard.scroll(
            qd.ScrollRequest(
                limit=EXPIRE_SLICE,
                filter=_filter([Between("expires", 0, min(now, points.GREATEST))]),
                with_payload=False,
                with_vector=False,
            )
        )
        if not found:
            return 0
        # First: the newest may be among them, and numbers are used once.
        self._put_facts({"token": self.token.hex(), "last": self.last})
        self._update(qd.UpdateOperation.delete_points([record.id for record in found]))
        self._deleted += len(found)
        return len(found)

    def sync(self) -> None:
        """Everything to the disk."""
        self._shard.flush()

    def tidy(self) -> bool:
        """Give back the space of what was deleted, where it is much; whether it was."""
        count = self._shard.info().points_count
        if self._deleted < max(TIDY_LEAST, TIDY_SHARE * count):
            return False
        self._deleted = 0
        self._shard.optimize()
        self._shard.flush()
        return True

    def status(self) -> tuple[int, int, int]:
        """Packets, bytes on the disk, packets that were not as they were deposited."""
        blocks = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                blocks += _blocks(Path(folder, name))
        return self._shard.info().points_count - 1, blocks * 512, self.refused

    def close(self) -> None:
        """Sync and let go."""
        self._shard.flush()
        self._shard.close()
        self._lock.close()

    # --- what was found ----------------------------------------------------------------

    def _rows(self, found: Sequence[qd.Record | qd.ScoredPoint]) -> list[Row]:
        """Those that are as they were deposited; the others are counted."""
        tried = [_row(record.id, record.payload or {}) for record in found]
        rows = [row for row in tried if row is not None]
        self.refused += len(found) - len(rows)
        return rows

    def _enough(self, limit: int, find: Callable[[int], Sequence[Any]]) -> Columns:
        """``limit`` rows of what ``find`` gives, which may hold foreign points."""
        wanted = limit
        while True:
            found = find(wanted)
            before = self.refused
            rows = self._rows(found)
            if len(rows) >= limit or len(found) < wanted:
                return list(zip(*rows[:limit], strict=True))
            wanted += self.refused - before
            self.refused = before  # they are counted when they are seen again


def _lock(path: Path, wait: float) -> IO[bytes]:
    """Hold the shard for this process. Qdrant's own lock comes too late: whoever opens a
    shard that another has open damages it before he is refused.

    :raises RuntimeError: another process holds it.
    """
    path.mkdir(parents=True, exist_ok=True)
    held = (path / LOCK).open("ab")
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                held.close()
                raise RuntimeError("in use by another process") from error
        else:
            return held
        time.sleep(0.05)


def _load_or_create(path: Path) -> qd.EdgeShard:
    if (path / "edge_config.json").exists():
        return qd.EdgeShard.load(str(path))
    config = qd.EdgeConfig(
        vectors={points.VECTOR: qd.EdgeVectorParams(points.SIZE, qd.Distance.Cosine)},
        # No graph: vectors are so short that to look at each is quick, and exact.
        hnsw_config=qd.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10**9),
    )
    shard = qd.EdgeShard.create(str(path), config)
    index = qd.UpdateOperation.create_field_index
    for key in points.KEYWORDS:
        shard.update(index(key, qd.PayloadSchemaType.Keyword))
    for key in (*points.INTEGERS, "seq"):
        shard.update(index(key, qd.PayloadSchemaType.Integer))
    shard.flush()
    return shard


def _condition(condition: Condition) -> qd.FieldCondition:
    if isinstance(condition, Is):
        return qd.FieldCondition(condition.key, match=qd.MatchValue(condition.value))
    return qd.FieldCondition(
        condition.key, range=qd.RangeFloat(gte=condition.least, lte=condition.most)
    )


def _filter(conditions: Sequence[Condition], but: Sequence[Condition] = ()) -> qd.Filter:
    return qd.Filter(
        must=[_condition(one) for one in conditions] or None,
        must_not=[_condition(one) for one in but] or None,
    )


def _asked(asked: Asked) -> list[Condition]:
    fingerprint, bits, since, confidence = asked
    interest = Interest(fingerprint, bits)
    return points.wanted(interest, since, confidence)


def _row(point: object, form: dict[str, Any]) -> Row | None:
    raw = points.raw_of(form)
    if raw is None or not is_framed(raw) or not isinstance(point, UUID):
        return None
    if not points.is_place_of(raw, point.bytes):
        return None
    if framed_fingerprint(raw).hex() != form.get("address"):
        return None
    time, expires, confidence = form.get("time"), form.get("expires"), form.get("confidence")
    if not type(time) is type(expires) is type(confidence) is int:
        return None
    return raw, time, expires, confidence, form.get("values")


def _blocks(path: Path) -> int:
    try:
        return path.stat().st_blocks
    except OSError:  # it was just replaced
        return 0


# --- the conversation ------------------------------------------------------------------


def receive(source: IO[bytes]) -> Any:
    """The next message.

    :raises EOFError: there is none, or it was cut.
    """
    head = source.read(4)
    size = int.from_bytes(head)
    body = source.read(size) if len(head) == 4 else b""
    if len(head) < 4 or len(body) < size:
        raise EOFError
    return cbor2.loads(body)


def send(sink: IO[bytes], message: Any) -> None:
    """Say something."""
    body = cbor2.dumps(message)
    sink.write(len(body).to_bytes(4) + body)
    sink.flush()


VERBS = ("deposit", "newest", "nearest", "slice", "expire", "sync", "tidy", "status")


def serve(shard: Shard, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer until the input ends."""
    while True:
        try:
            verb, *arguments = receive(source)
        except EOFError:
            return
        if verb not in VERBS:
            send(sink, [False, f"{verb} is not known"])
            continue
        try:
            answer = [True, getattr(shard, verb)(*arguments)]
        except Exception as error:  # noqa: BLE001 - the engine raises nothing finer
            answer = [False, str(error)]
        send(sink, answer)


def main(path: str, wait: float) -> None:
    """Open the shard, say so, and serve."""
    # What stops the gateway stops this by ending its input, once all was said.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Whatever prints something does not end up among the answers.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        shard = Shard(Path(path), wait)
    except Exception as error:  # noqa: BLE001 - the engine raises nothing finer
        send(sink, [False, str(error)])
        return
    gc.freeze()  # what is made for an answer has no cycles: to look through it is in vain
    gc.set_threshold(100_000)
    try:
        send(sink, [True, [shard.token, shard.last]])
        serve(shard, sys.stdin.buffer, sink)
    finally:
        shard.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
