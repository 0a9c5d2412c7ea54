"""The MQTT link on the distribution's Mosquitto: what breaks, what it says, what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from qis_edge.core.errors import LinkError
from qis_edge.links.base import UP, Role, down, peers
from qis_edge.links.mqtt import MqttLink
from qis_edge.testing.links import receive_done, send_when_possible, until_down, until_up
from tests.links.brokers import (
    GATEWAY,
    NODE,
    SITE,
    error_of,
    gateway_link,
    node_link,
    settings,
    started,
    until,
)
from tests.mosquitto import Mosquitto, running

DOCS = Path(__file__).parents[2] / "docs"
ACL = DOCS / "mosquitto.acl"
PROTOCOLS = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running(Mosquitto(tmp_path)) as broker:
        yield broker


# Custody above, a broker that loses everything below.


class Sender:
    """The least custody that there is: again, by its own timer, until it is answered."""

    def __init__(self, link: MqttLink, count: int, *, window: int = 40, patience: float = 0.3):
        self.link = link
        self.unanswered = dict.fromkeys(range(count), 0.0)
        self.sent = 0
        self.window = window
        self.patience = patience

    async def run(self) -> None:
        answers = asyncio.create_task(self._answers())
        loop = asyncio.get_running_loop()
        try:
            while self.unanswered:
                for number in list(self.unanswered)[: self.window]:
                    due = self.unanswered.get(number, loop.time() + 1)
                    if due <= loop.time() and self.link.room:
                        with contextlib.suppress(LinkError):
                            await self.link.send(number.to_bytes(4, "big") + bytes(100), UP)
                        self.unanswered[number] = loop.time() + self.patience
                        self.sent += 1
                await asyncio.sleep(0.002)
        finally:
            answers.cancel()

    async def _answers(self) -> None:
        while True:
            received = await self.link.receive()
            self.unanswered.pop(int.from_bytes(received.data[:4], "big"), None)
            await self.link.done(received)


async def answer_all(link: MqttLink, kept: list[int]) -> None:
    """Keep what comes, then acknowledge it, then answer it if that is possible now."""
    while True:
        received = await link.receive()
        kept.append(int.from_bytes(received.data[:4], "big"))
        await link.done(received)
        with contextlib.suppress(LinkError):
            await link.send(received.data[:4], down(received.claimed or b""))


@PROTOCOLS
async def test_nothing_is_lost_over_a_broker_that_loses_all_it_acknowledged(
    broker: Mosquitto, protocol: str
) -> None:
    count = 1500
    kept: list[int] = []
    async with (
        started(gateway_link(broker.port, protocol=protocol)) as gateway,
        started(node_link(broker.port, protocol=protocol)) as node,
    ):
        intake = asyncio.create_task(answer_all(gateway, kept))
        sender = Sender(node, count)
        sending = asyncio.create_task(sender.run())
        try:
            for share in (0.2, 0.5, 0.8):
                await until(lambda share=share: len(sender.unanswered) < count * (1 - share), 20)
                await asyncio.to_thread(broker.restart)
            await asyncio.wait_for(sending, 20)
        finally:
            sending.cancel()
            intake.cancel()
    assert set(kept) == set(range(count))
    assert (node.stats.connects, gateway.stats.connects) == (4, 4)
    assert sender.sent > count  # or nothing was lost on the way, and this shows nothing


# What Mosquitto promises by default, and what with our configuration.


async def kept_for_an_absent_gateway(broker: Mosquitto, protocol: str, count: int) -> list[int]:
    """What a gateway gets when it comes back, of what the broker acknowledged meanwhile."""
    async with started(gateway_link(broker.port, protocol=protocol)):
        pass
    async with started(node_link(broker.port, protocol=protocol)) as node:
        for number in range(count):
            await send_when_possible(node, number.to_bytes(4, "big") * 20)
        free = node.settings.window if protocol == "3.1.1" else 20
        await until(lambda: node.room >= free)  # all of them are acknowledged
        async with started(gateway_link(broker.port, protocol=protocol)) as gateway:
            await node.send(b"last", UP)
            found: list[int] = []
            while True:
                received = (await receive_done(gateway, 1))[0]
                if received.data == b"last":
                    return found
                found.append(int.from_bytes(received.data[:4], "big"))


@PROTOCOLS
async def test_by_default_it_acknowledges_what_it_throws_away(
    broker: Mosquitto, protocol: str
) -> None:
    assert await kept_for_an_absent_gateway(broker, protocol, 1500) == list(range(1000))


@PROTOCOLS
async def test_with_our_configuration_it_keeps_it(tmp_path: Path, protocol: str) -> None:
    ours = (DOCS / "mosquitto.conf").read_text().splitlines()
    lines = [line for line in ours if line.startswith("max_")]
    assert len(lines) == 4
    with running(Mosquitto(tmp_path, ["allow_anonymous true", *lines])) as broker:
        broker_keeps = await kept_for_an_absent_gateway(broker, protocol, 1500)
        assert broker_keeps[-1] == 1499
        assert len(broker_keeps) == 1500


# Connections that break in other ways.


async def test_a_frozen_broker_is_noticed_and_found_again(broker: Mosquitto) -> None:
    async with started(node_link(broker.port, keepalive=1, connect_timeout=0.3)) as node:
        broker.pause()
        await until_down(node, seconds=30)
        assert "fallen silent" in (node.stats.last_error or "")
        await error_of(node, "has not answered our CONNECT")
        broker.resume()
        await until_up(node)
        # In MQTT 5 again: a broker that was frozen is not taken for an old one.
        await until(lambda: node.stats.extra["protocol"] in (5.0, 3.1))


async def test_frames_into_a_frozen_broker_are_noticed_sooner(broker: Mosquitto) -> None:
    async with started(node_link(broker.port, ack_timeout=0.3)) as node:
        await until(lambda: node.room == 20)
        broker.pause()
        await node.send(b"frame", UP)
        await until_down(node, seconds=30)
        assert "acknowledges nothing" in (node.stats.last_error or "")
        broker.resume()


async def test_a_second_daemon_with_the_same_key_is_named(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = gateway_link(broker.port), gateway_link(broker.port)
    async with started(one, wait=False), started(other, wait=False):
        await until(lambda: "does another program use the same key" in caplog.text)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_wrong_passwords_are_said(tmp_path: Path, protocol: str) -> None:
    users = tmp_path / "users"
    users.write_text("node:right\n")
    hash_passwords = ["mosquitto_passwd", "-U", str(users)]
    assert await asyncio.to_thread(subprocess.call, hash_passwords) == 0
    with running(Mosquitto(tmp_path, [f"password_file {users}"])) as broker:
        wrong = node_link(broker.port, user="node", password="wrong", protocol=protocol)
        async with started(wrong, wait=False):
            assert await error_of(wrong, "refuses us") == "the broker refuses us: Not authorized"
        secret = tmp_path / "secret"
        secret.write_text("right\n")
        secret.chmod(0o600)
        right = node_link(broker.port, user="node", password_file=secret, protocol=protocol)
        async with started(right):
            pass


async def test_presence_ends_with_the_process(broker: Mosquitto) -> None:
    heard: list[tuple[str, bytes]] = []
    with Anybody(broker.port, f"qis/v1/{SITE}/state/+", heard):
        program = (
            "import asyncio\n"
            "from tests.links.brokers import node_link\n"
            "async def main():\n"
            f"    await node_link({broker.port}).start()\n"
            "    await asyncio.sleep(60)\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", program])
        topic = f"qis/v1/{SITE}/state/{NODE.hex()}"
        await until(lambda: heard == [(topic, b"online")])
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        await until(lambda: heard[1:] == [(topic, b"offline")])


class Anybody:
    """Some other client of the broker, in paho's own thread, while it is entered.

    :param login: files of the authority, its certificate and its key.
    """

    def __init__(
        self,
        port: int,
        topic: str,
        heard: list[tuple[str, bytes]],
        *,
        name: str = "",
        login: tuple[Path, Path, Path] | None = None,
    ) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name)
        self.client.on_message = lambda _c, _u, m: heard.append((m.topic, bytes(m.payload)))
        self.client.on_connect = lambda c, *_: c.subscribe(topic, 1)
        if login is not None:
            ca, cert, key = map(str, login)
            self.client.tls_set(ca, cert, key)
        self._where = ("localhost" if login else "127.0.0.1", port)

    def __enter__(self) -> paho.Client:
        self.client.connect(*self._where)
        self.client.loop_start()
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


async def test_frames_left_retained_by_a_stranger_are_ignored(broker: Mosquitto) -> None:
    with Anybody(broker.port, "nothing", []) as stranger:
        for topic in (f"up/{NODE.hex()}", f"down/{NODE.hex()}", f"peers/{'ab' * 16}"):
            stranger.publish(f"qis/v1/{SITE}/{topic}", b"old", 1, retain=True).wait_for_publish(5)
    for protocol in ("5", "3.1.1"):
        async with (
            started(gateway_link(broker.port, protocol=protocol)) as gateway,
            started(node_link(broker.port, protocol=protocol)) as node,
        ):
            await node.listen(frozenset([b"\xab" * 32]))
            await node.send(b"new", UP)
            await gateway.send(b"new", down(NODE))
            assert [r.data for r in await receive_done(gateway, 1)] == [b"new"]
            assert [r.data for r in await receive_done(node, 1)] == [b"new"]


# TLS, certificates of clients, and the ACL, as the copyable files have them.


class Authority:
    """A fleet's own certificate authority, and files that it has issued."""

    def __init__(self, folder: Path) -> None:
        trustme = pytest.importorskip("trustme", reason="needs: trustme (pip install trustme)")
        self.folder = folder
        self._ca = trustme.CA()
        self.ca = folder / "qis-ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, **options: Any) -> tuple[Path, Path]:
        """Certificate and key for a name, which is its common name too."""
        issued = self._ca.issue_cert(name, common_name=name, **options)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return cert, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "certs"
    folder.mkdir()
    return Authority(folder)


def documented(folder: Path, authority: Authority) -> Mosquitto:
    """A broker with docs/mosquitto.conf and docs/mosquitto.acl, paths and port adapted."""
    cert, key = authority.issue("localhost")
    conf = (DOCS / "mosquitto.conf").read_text()
    for old, new in [
        ("/etc/mosquitto/certs/qis-ca.pem", authority.ca),
        ("/etc/mosquitto/certs/broker.pem", cert),
        ("/etc/mosquitto/certs/broker-key.pem", key),
        ("/etc/mosquitto/qis-edge.acl", ACL),
    ]:
        assert old in conf
        conf = conf.replace(old, str(new))
    assert "listener 8883\n" in conf
    return Mosquitto(folder, conf.replace("listener 8883\n", "").splitlines())


def secured(
    role: Role, broker: Mosquitto, authority: Authority, name: str, kid: bytes, **others: Any
) -> MqttLink:
    """A link with a client certificate for ``name``."""
    cert, key = authority.issue(name)
    tls = {"tls": True, "ca": authority.ca, "cert": cert, "key": key, "server_name": "localhost"}
    return MqttLink(settings(broker.port, **(tls | others)), role, SITE, kid, name=name)


@PROTOCOLS
async def test_the_documented_broker_serves_nodes_and_gateways(
    tmp_path: Path, authority: Authority, protocol: str
) -> None:
    with running(documented(tmp_path, authority)) as broker:
        node = secured(Role.NODE, broker, authority, NODE.hex(), NODE, protocol=protocol)
        gateway = secured(Role.GATEWAY, broker, authority, "gateway", GATEWAY, protocol=protocol)
        async with started(node), started(gateway):
            await node.listen(frozenset([b"\xab" * 32]))
            sent = [bytes([number]) * 512 for number in range(200)]
            pump = asyncio.create_task(_send(node, sent))
            assert [r.data for r in await receive_done(gateway, 200)] == sent
            await pump
            await gateway.send(b"receipt", down(NODE))
            await gateway.send(b"packet", peers(b"\xab" * 32))
            assert {r.data for r in await receive_done(node, 2)} == {b"receipt", b"packet"}


async def _send(link: MqttLink, frames: list[bytes]) -> None:
    for frame in frames:
        await send_when_possible(link, frame)


async def test_the_acl_holds_a_node_to_its_own_topics(tmp_path: Path, authority: Authority) -> None:
    stranger = b"other\x00\x00\x01"
    with running(documented(tmp_path, authority)) as broker:
        node = secured(Role.NODE, broker, authority, NODE.hex(), NODE)
        gateway = secured(Role.GATEWAY, broker, authority, "gateway", GATEWAY)
        heard: list[tuple[str, bytes]] = []
        login = (authority.ca, *authority.issue(stranger.hex()))

        def anybody() -> Anybody:
            # With a certificate of the fleet; asks for all there is, as the gateway itself.
            name = f"qis-gw-{GATEWAY.hex()}"
            return Anybody(broker.port, "qis/v1/#", heard, name=name, login=login)

        async with started(gateway), started(node):
            await node.listen(frozenset([b"\xab" * 32]))
            for topic in (f"up/{NODE.hex()}", f"down/{NODE.hex()}", f"peers/{'ab' * 16}"):
                with anybody() as client, contextlib.suppress(RuntimeError):  # it is thrown out
                    client.publish(f"qis/v1/{SITE}/{topic}", b"forged", 1).wait_for_publish(0.5)
            with anybody() as client:
                own = f"qis/v1/{SITE}/up/{stranger.hex()}"
                client.publish(own, b"its own", 1).wait_for_publish(5)
                await node.send(b"reading", UP)
                await gateway.send(b"receipt", down(NODE))
                await gateway.send(b"packet", peers(b"\xab" * 32))
                found = [(r.claimed, r.data) for r in await receive_done(gateway, 2)]
                assert found == [(stranger, b"its own"), (NODE, b"reading")]
                assert {r.data for r in await receive_done(node, 2)} == {b"receipt", b"packet"}
                await until(lambda: heard)
            # What all nodes hear it hears too, and nothing else.
            assert heard == [(f"qis/v1/{SITE}/peers/{'ab' * 16}", b"packet")]
            assert (node.stats.connects, gateway.stats.connects) == (1, 1)


@pytest.mark.parametrize(
    "acl", ["pattern read qis/v1/+/down/%u", "pattern write qis/v1/+/state/%u"]
)
async def test_what_the_acl_forbids_is_said(tmp_path: Path, acl: str) -> None:
    (tmp_path / "acl").write_text(acl + "\n")
    lines = ["allow_anonymous true", f"acl_file {tmp_path / 'acl'}"]
    with running(Mosquitto(tmp_path, lines)) as broker:
        node = node_link(broker.port, user=NODE.hex())
        async with started(node, wait=False):
            sending = asyncio.create_task(_send(node, [b"frame"] * 100))
            error = await error_of(node, "does not let us publish")
            sending.cancel()
            assert f"{NODE.hex()}: Not authorized" in error
            if "state" in acl:
                assert f"/up/{NODE.hex()}" in error


async def test_the_documented_broker_refuses_large_frames(
    tmp_path: Path, authority: Authority
) -> None:
    with running(documented(tmp_path, authority)) as broker:
        gateway = secured(Role.GATEWAY, broker, authority, "gateway", GATEWAY)
        node = secured(Role.NODE, broker, authority, NODE.hex(), NODE, protocol="3.1.1")
        node.mtu = 10_000
        async with started(gateway), started(node):
            for size in (513, 5000):
                await node.send(bytes(size), UP)
                await until_down(node)
                await until_up(node)
            await node.send(b"reading", UP)
            assert [r.data for r in await receive_done(gateway, 1)] == [b"reading"]
            assert gateway.stats.dropped_in == 0


PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
FUTURE = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)


def server(folder: Path, authority: Authority, **options: Any) -> Mosquitto:
    """A broker with TLS and a certificate for localhost."""
    cert, key = authority.issue("localhost", **options)
    tls = [f"cafile {authority.ca}", f"certfile {cert}", f"keyfile {key}"]
    return Mosquitto(folder, ["allow_anonymous true", *tls])


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({"not_after": PAST}, {}, "certificate has expired"),
        ({"not_before": FUTURE}, {}, "certificate is not valid yet"),
        ({}, {"server_name": "other.example"}, "certificate is for another name"),
        ({}, {"server_name": None}, "certificate is for another address"),
        ({}, {"ca": None}, "certificate leads to an unknown authority"),
    ],
)
async def test_a_certificate_that_is_not_good_is_said(
    tmp_path: Path,
    authority: Authority,
    options: dict[str, Any],
    given: dict[str, Any],
    words: str,
) -> None:
    with running(server(tmp_path, authority, **options)) as broker:
        tls: dict[str, Any] = {"tls": True, "ca": authority.ca, "server_name": "localhost"}
        node = node_link(broker.port, **(tls | given))
        async with started(node, wait=False):
            assert await error_of(node, words) == f"the broker's {words}"
            assert not node.up


async def test_a_good_certificate_is_believed(tmp_path: Path, authority: Authority) -> None:
    with running(server(tmp_path, authority)) as broker:
        tls: dict[str, Any] = {"tls": True, "ca": authority.ca, "server_name": "localhost"}
        async with (
            started(node_link(broker.port, **tls)) as node,
            started(gateway_link(broker.port, **tls)) as gateway,
        ):
            await node.send(bytes(512), UP)
            assert [r.data for r in await receive_done(gateway, 1)] == [bytes(512)]


async def test_a_renewed_certificate_needs_no_restart(tmp_path: Path, authority: Authority) -> None:
    with running(server(tmp_path, authority)) as broker:
        ca = tmp_path / "ca.pem"
        (tmp_path / "old").mkdir()
        ca.write_bytes(Authority(tmp_path / "old").ca.read_bytes())
        node = node_link(broker.port, tls=True, ca=ca, server_name="localhost")
        async with started(node, wait=False):
            await error_of(node, "unknown authority")
            ca.write_bytes(authority.ca.read_bytes())
            await until_up(node)


@PROTOCOLS
async def test_a_broker_that_wants_a_certificate_says_so(
    tmp_path: Path, authority: Authority, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(documented(tmp_path, authority)) as broker:
        node = node_link(
            broker.port, tls=True, ca=authority.ca, server_name="localhost", protocol=protocol
        )
        async with started(node, wait=False):
            await until(lambda: "does it want a certificate of ours" in caplog.text)


async def test_tls_and_none_do_not_meet(
    broker: Mosquitto, tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    node = node_link(broker.port, tls=True, ca=authority.ca, connect_timeout=1.0)
    async with started(node, wait=False):
        await until(lambda: node.stats.last_error)
        assert "TLS" in (node.stats.last_error or "")
    with running(server(tmp_path / "tls", authority)) as secure:
        node = node_link(secure.port)
        async with started(node, wait=False):
            await error_of(node, "the broker hung up without an answer")
            assert "does it want TLS" in caplog.text


@PROTOCOLS
async def test_a_certificate_of_ours_that_has_expired_is_said(
    tmp_path: Path, authority: Authority, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(documented(tmp_path, authority)) as broker:
        cert, key = authority.issue(NODE.hex(), not_after=PAST)
        tls: dict[str, Any] = {"tls": True, "ca": authority.ca, "server_name": "localhost"}
        node = node_link(broker.port, cert=cert, key=key, protocol=protocol, **tls)
        async with started(node, wait=False):
            await until(lambda: "certificate" in caplog.text)
            assert re.search("ended TLS|has expired, says the broker", caplog.text)
            assert f"our certificate {cert} ended on 2020-01-01" in caplog.text
            assert not node.up
