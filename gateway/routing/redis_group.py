"""Gateways that divide the addresses of a Redis server between them.

Addresses fall into :data:`SHARES` shares by a hash. A stream ``PREFIX:group:NAME`` has an
entry for each share, and a consumer group hands these out: a gateway has those that are
pending for it, and what it does not renew in time, others claim. So a share is one gateway's
at any moment, and its packets stay in their streams: who gets a share reads it from where its
own view stands, as with Kafka's partitions.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gateway.routing.base import framed_fingerprint
from gateway.routing.feed import Chunk
from gateway.routing.redis_places import Place, StreamId

SHARES = 64
#: Seconds after which a gateway that does not renew its shares has lost them.
LEASE = 15.0

#: Bytes that a packet's framing has with its address.
LEAST_FRAME = 60
_IDS = struct.Struct(f">{2 * SHARES}Q")

#: Arguments: the gateway, its lease in milliseconds, how many shares there are. Takes what is
#: new, free or another's who is gone, up to its part; then from those who have more than
#: theirs. Renews what it has, and returns it.
_TAKE = """
local key, me, lease, count = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', key) == 0 then
  for share = 1, count do redis.call('XADD', key, share .. '-0', 's', share) end
  redis.call('XGROUP', 'CREATE', key, 'gateways', '0')
end
redis.call('XREADGROUP', 'GROUP', 'gateways', me, 'STREAMS', key, '>')
local has, gateways = {[me] = {}}, 1
local gone = {}
for _, facts in ipairs(redis.call('XINFO', 'CONSUMERS', key, 'gateways')) do
  local said = {}
  for i = 1, #facts, 2 do said[facts[i]] = facts[i + 1] end
  if said.name ~= me then
    if said.idle < lease then
      has[said.name], gateways = {}, gateways + 1
    else
      gone[said.name] = true
    end
  end
end
local taken = {}
for _, pending in ipairs(redis.call('XPENDING', key, 'gateways', '-', '+', count)) do
  local owner = has[pending[2]]
  if owner then
    table.insert(owner, pending[1])
    taken[pending[1]] = true
  end
end
local mine, least = has[me], math.floor(count / gateways)
for share = 1, count do
  local id = share .. '-0'
  if not taken[id] and #mine < math.ceil(count / gateways) then table.insert(mine, id) end
end
while #mine < least do
  local most = mine
  for _, others in pairs(has) do if #others > #most then most = others end end
  if #most <= least then break end
  table.insert(mine, table.remove(most))
end
for _, id in ipairs(mine) do
  redis.call('XCLAIM', key, 'gateways', me, 0, id, 'FORCE', 'JUSTID')
end
for name in pairs(gone) do
  local left = redis.call('XPENDING', key, 'gateways', '-', '+', 1, name)
  if #left == 0 then redis.call('XGROUP', 'DELCONSUMER', key, 'gateways', name) end
end
return mine
"""
#: What it has is free at once.
_LEAVE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], 'gateways', '-', '+', 1000, ARGV[1])) do
  redis.call('XACK', KEYS[1], 'gateways', pending[1])
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'gateways', ARGV[1])
"""


def share_of(raw: bytes) -> int:
    """The share of a packet, by its address; of what is none, some share or other."""
    address = framed_fingerprint(raw) if len(raw) > LEAST_FRAME else raw
    digest = hashlib.sha256(address).digest()
    return int.from_bytes(digest[:8]) % SHARES


class Group:
    """This gateway's part of one.

    :param key: of the stream of shares.
    :param gateway: its name; another process of that name is another gateway.
    """

    def __init__(self, key: str, gateway: str) -> None:
        self._key = key
        self._me = f"{gateway}-{os.urandom(4).hex()}"

    def take(self, pipe: Any) -> None:
        """Renew what it has and take what it may, as a step of a pipeline."""
        pipe.eval(_TAKE, 1, self._key, self._me, int(LEASE * 1000), SHARES)

    @staticmethod
    def taken(answer: Iterable[bytes]) -> frozenset[int]:
        """The shares that it has, of what that step was answered."""
        return frozenset(StreamId.parse(share).ms - 1 for share in answer)

    async def leave(self, client: Any) -> None:
        """Let others have them."""
        await client.eval(_LEAVE, 1, self._key, self._me)


class SharedPlace(NamedTuple):
    """Where a reader stands in each share.

    :param place: of the last entry that it came by.
    :param ids: by share; what it had before and has no more keeps its own.
    """

    place: Place
    ids: tuple[StreamId, ...] = (StreamId(0, 0),) * SHARES

    def encode(self) -> bytes:
        """Some 1,060 bytes; none for the beginning."""
        head = self.place.encode()
        return head and head + _IDS.pack(*(number for id_ in self.ids for number in id_))

    @classmethod
    def decode(cls, data: bytes, born: bytes) -> SharedPlace:
        """The beginning, where it is a place in another log or none at all."""
        place = Place.decode(data[: -_IDS.size], born)
        if len(data) < _IDS.size or not place.domain:
            return cls(Place(born))
        numbers = iter(_IDS.unpack(data[-_IDS.size :]))
        return cls(place, tuple(map(StreamId, numbers, numbers)))

    def start(self, shares: frozenset[int]) -> Place:
        """From where on these shares are to be read."""
        least = min((self.ids[share] for share in shares), default=self.place.id)
        return self.place._replace(id=least)

    def chunk(
        self,
        found: Sequence[tuple[StreamId, bytes, bytes]],
        shares: frozenset[int],
        *,
        end: bool,
    ) -> Chunk:
        """What of the entries (id, domain, packet) is of these shares, and new."""
        if not found:
            return Chunk((), self.encode(), end)
        ids = list(self.ids)
        raws = []
        for where, _, raw in found:
            share = share_of(raw)
            if share in shares and where > self.ids[share]:
                raws.append(raw)
        last, domain, _ = found[-1]
        for share in shares:
            ids[share] = max(ids[share], last)
        place = self.place
        if last > place.id:
            place = place._replace(id=last, domain=domain)
        return Chunk(tuple(raws), SharedPlace(place, tuple(ids)).encode(), end)
