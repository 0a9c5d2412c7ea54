"""A node of a fleet's own DHT: ``python -m gateway.routing.dht_node --listen HOST:PORT``.

Run so it holds values for others and is where they begin; it needs no gateway. A gateway runs
one as a process of its own (``--pipe``), for three reasons: the library ends the process that
it is in where it cannot bind its port, it reads what strangers send in C++, and none of its
threads then waits for the gateway's.

With ``--pipe`` messages are 4 bytes of length and CBOR. Asked on the standard input:

- ``["put", number, [[key, id, data], …]]``, answered by ``["put", number, [copies, …]]``, each
  once all nodes near the key that are alive have said that they hold it; 0: nobody does.
- ``["get", number, key]``, answered by ``["got", number, ok]``; what there is comes before.
- ``["reach", number, host, port]``, answered by ``["reached", number, ok]``;
- ``["follow", key]``: what comes there from now on.

Unasked come ``["ready", port]`` or ``["failed", why]`` once, ``["values", [data, …]]``, and
``["dropped", count]`` of values that nobody took off in time. It ends with its input.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import IO, Any

import cbor2
import opendht

#: Where nodes listen unless told otherwise.
PORT = 4222
NETWORK = "qis"
#: Seconds that a node keeps a value that nobody puts there again; and the least: the library
#: puts values of listeners anew some 10 s before, and turns in circles with less.
LIFETIME = 24 * 3600
LEAST_LIFETIME = 12
#: Nodes near a key that are to hold a value: the library's own number.
COPIES = 8
#: Bytes of a value that are passed on, more than any packet has; and values that wait.
LARGEST = 1024
MAX_WAITING = 20_000
#: Values of our own that are known when they come back.
MAX_OWN = 20_000
#: Values of one message.
SLICE = 500
#: Seconds for the farewell of a node by itself, in which others are given what they should
#: hold. A gateway keeps its packets, and is not kept waiting.
FAREWELL = 10.0


def network_id(name: str) -> int:
    """What tells a network's messages from others'."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) or 1


def split(place: str, port: int) -> tuple[str, int]:
    """``HOST:PORT``, ``HOST``, ``PORT``, ``[IPV6]:PORT``.

    :raises ValueError: it is none of these.
    """
    if place.isascii() and place.isdigit():
        host, number = "", place
    elif place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            raise ValueError(f"{place!r} is no place to listen")
        number = rest[1:] or str(port)
    else:
        host, _, number = place.partition(":")
        number = number or str(port)
    if not (number.isascii() and number.isdigit() and int(number) < 2**16):
        raise ValueError(f"{number!r} is no port")
    return host, int(number)


class Node:
    """The library's runner, started."""

    def __init__(self, network: str, host: str, port: int, lifetime: int) -> None:
        """:raises OSError: it cannot listen there."""
        host = host or "0.0.0.0"  # noqa: S104 - a node is there for others
        six = ":" in host
        _try_to_bind(host, port, socket.AF_INET6 if six else socket.AF_INET)
        self._own: dict[int, None] = {}
        config = opendht.DhtConfig()
        config.setNetwork(network_id(network))
        config.setRateLimit(-1, -1)  # or gateways that start are refused what they ask for
        config.setMaintainStorage(True)
        self._runner = opendht.DhtRunner()
        self._runner.run(
            ipv4="" if six else host, ipv6=host if six else "", port=port, config=config
        )
        # Type 0 is that of all values that this library's Python puts.
        self._runner.registerType(opendht.ValueType(0, "qis", timedelta(seconds=lifetime)))
        self.port = int(self._runner.getBound(socket.AF_INET6 if six else 0).getPort())

    def join(self, host: str, port: int) -> None:
        """Begin with that node; the library tries again while it knows nobody."""
        self._runner.bootstrap(host, str(port))

    def reach(self, host: str, port: int, done: Callable[[bool], None]) -> None:
        """Whether a node answers there. Names are looked up meanwhile: it returns later."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            done(False)
            return
        left = len(found)
        lock = threading.Lock()

        def answered(ok: bool) -> None:
            nonlocal left
            with lock:
                left = -1 if ok and left > 0 else left - 1
                first, last = left == -1, left == 0
            if first or last:
                done(first)

        for *_, address in found:
            self._runner.ping(opendht.SockAddr.resolve(address[0], str(port))[0], answered)

    def put(self, key: bytes, number: int, data: bytes, done: Callable[[int], None]) -> None:
        """``done`` is called with how many hold it, on a thread of the library."""
        value = opendht.Value(data)
        value.id = number
        self._own[hash(data)] = None
        if len(self._own) > MAX_OWN:
            del self._own[next(iter(self._own))]

        def answered(ok: bool, nodes: Sequence[Any]) -> None:
            alive = sum(not one.getNode().isExpired() for one in nodes) if ok else 0
            done(min(alive, COPIES))

        self._runner.put(_hash(key), value, answered)

    def get(self, key: bytes, found: Callable[[bytes], None], done: Callable[[bool], None]) -> None:
        """Each value once, whoever holds it."""
        seen: set[int] = set()

        def one(value: Any) -> bool:
            data = value.data
            if (mark := hash(data)) not in seen:
                seen.add(mark)
                found(data)
            return True

        self._runner.get(_hash(key), one, lambda ok, _nodes: done(bool(ok)))

    def follow(self, key: bytes, found: Callable[[bytes], None]) -> None:
        """What others put there; for good: the library's way of ending it is not to be
        trusted."""

        def one(value: Any, expired: bool) -> bool:
            if not expired and hash(data := value.data) not in self._own:
                found(data)
            return True

        self._runner.listen(_hash(key), one)

    def end(self) -> None:
        """Say goodbye; what others should hold is given to them first."""
        done = threading.Event()
        self._runner.shutdown(done.set)
        done.wait(FAREWELL)


def _hash(key: bytes) -> Any:
    return opendht.InfoHash(key.hex().encode())


def _try_to_bind(host: str, port: int, family: int) -> None:
    """The library ends the process where it cannot. :raises OSError:"""
    with socket.socket(family, socket.SOCK_DGRAM) as tried:
        tried.bind((host, port))


# --- for a gateway -----------------------------------------------------------------------


class Outbox:
    """What is said on the standard output, by one thread."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._waiting: queue.SimpleQueue[bytes | list[Any]] = queue.SimpleQueue()
        self._dropped = 0
        threading.Thread(target=self._run, daemon=True).start()

    def value(self, data: bytes) -> None:
        """Found on the network; dropped where too many wait."""
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put(data[:LARGEST])
        else:
            self._dropped += 1

    def say(self, *message: Any) -> None:
        self._waiting.put(list(message))

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the gateway has gone
            while True:
                self._send(self._next())

    def _next(self) -> list[list[Any]]:
        """Messages, with values that wait together in one."""
        items = [self._waiting.get()]
        with contextlib.suppress(queue.Empty):
            while len(items) < SLICE:
                items.append(self._waiting.get_nowait())
        found: list[list[Any]] = []
        for item in items:
            if isinstance(item, list):
                found.append(item)
            elif found and found[-1][0] == "values":
                found[-1][1].append(item)
            else:
                found.append(["values", [item]])
        if self._dropped:
            found.append(["dropped", self._dropped])
            self._dropped = 0
        return found

    def _send(self, messages: Sequence[list[Any]]) -> None:
        for message in messages:
            body = cbor2.dumps(message)
            self._sink.write(len(body).to_bytes(4) + body)
        self._sink.flush()


def serve(node: Node, source: IO[bytes], out: Outbox) -> None:
    """Until the input ends."""
    while len(head := source.read(4)) == 4:
        body = source.read(int.from_bytes(head))
        verb, *arguments = cbor2.loads(body)
        if verb == "put":
            _put(node, out, *arguments)
        elif verb == "get":
            number, key = arguments
            node.get(key, out.value, partial(out.say, "got", number))
        elif verb == "reach":
            number, host, port = arguments
            asked = (host, port, partial(out.say, "reached", number))
            threading.Thread(target=node.reach, args=asked, daemon=True).start()
        elif verb == "follow":
            node.follow(arguments[0], out.value)


def _put(node: Node, out: Outbox, number: int, values: Sequence[Sequence[Any]]) -> None:
    copies = [0] * len(values)
    left = len(values)
    lock = threading.Lock()

    def done(which: int, found: int) -> None:
        nonlocal left
        with lock:
            copies[which] = found
            left -= 1
            last = not left
        if last:
            out.say("put", number, copies)

    for which, (key, value, data) in enumerate(values):
        node.put(key, value, data, partial(done, which))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway.routing.dht_node", description="A node of a fleet's own DHT."
    )
    parser.add_argument("--listen", default=str(PORT), help=f"[HOST:]PORT ({PORT}); 0: any port")
    parser.add_argument("--network", default=NETWORK, help=f"its name, as in the URL ({NETWORK})")
    parser.add_argument("--join", action="append", default=[], help="HOST[:PORT] of another node")
    parser.add_argument(
        "--lifetime", type=int, default=LIFETIME, help=f"seconds that a value lives ({LIFETIME})"
    )
    parser.add_argument("--pipe", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.lifetime < LEAST_LIFETIME:
        parser.error(f"--lifetime must be at least {LEAST_LIFETIME}")
    try:
        listen = split(given.listen, PORT)
        join = [split(place, PORT) for place in given.join]
    except ValueError as error:
        parser.error(str(error))
    if given.pipe:
        return _for_a_gateway(given.network, listen, join, given.lifetime)
    # Before the library starts its threads, which would take them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        node = Node(given.network, *listen, given.lifetime)
    except OSError as error:
        parser.error(f"cannot listen at {given.listen}: {why(error)}")
    for place in join:
        node.join(*place)
    sys.stdout.write(f"a node of the network {given.network} listens on UDP port {node.port}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    node.end()
    return 0


def why(error: OSError) -> str:
    """In words."""
    if error.errno == errno.EADDRINUSE:
        return "the port is in use"
    return error.strerror or str(error)


def _for_a_gateway(
    network: str, listen: tuple[str, int], join: Sequence[tuple[str, int]], lifetime: int
) -> int:
    # What stops the gateway stops this by ending its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Whatever prints something does not end up among the answers.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    out = Outbox(sink)
    try:
        node = Node(network, *listen, lifetime)
    except OSError as error:
        out.say("failed", why(error))
        sys.stdin.buffer.read()
        return 1
    for place in join:
        node.join(*place)
    out.say("ready", node.port)
    serve(node, sys.stdin.buffer, out)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the library's threads do not end by themselves
