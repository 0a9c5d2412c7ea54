"""The embedded broker: MQTT links on it pass the suite, and it says what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway import broker as module
from gateway.broker import EmbeddedBroker, add_user
from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links.base import UP, Link
from qis_edge.testing.links import (
    LinkConformance,
    LinkWorld,
    receive_done,
    send_when_possible,
    until_down,
    until_up,
)
from tests.links.brokers import gateway_link, node_link


class AmqttWorld(LinkWorld):
    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker

    def node(self, kid: bytes) -> Link:
        return node_link(self.broker.port, kid)

    def gateway(self, kid: bytes) -> Link:
        return gateway_link(self.broker.port, kid)

    async def fail(self) -> None:
        await self.broker.stop()

    async def heal(self) -> None:
        await self.broker.start()


class TestMqttOnTheEmbeddedBroker(LinkConformance):
    redelivers = False  # it forgets the sessions of anonymous clients
    quiet = 0.15

    @asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[LinkWorld]:
        broker = EmbeddedBroker(port=0)
        await broker.start()
        try:
            yield AmqttWorld(broker)
        finally:
            await broker.stop()


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    broker = EmbeddedBroker(port=0)
    await broker.start()
    yield broker
    await broker.stop()


async def greet(port: int, greeting: bytes) -> bytes:
    """What the broker answers before it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(greeting)
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:  # it hung up before it had read everything
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_greeting_in_mqtt_5_is_answered(broker: EmbeddedBroker) -> None:
    greeting = bytes.fromhex(
        "10 1c 0004 4d515454 05 02 001e 05 1100000e10 000a 7169732d30303030303031"
    )
    greeting = greeting[:1] + bytes([len(greeting) - 2]) + greeting[2:]
    assert await greet(broker.port, greeting) == b"\x20\x02\x00\x01"


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\x7f", b"\x10\x00"]
)
async def test_what_is_no_greeting_ends_the_connection(
    broker: EmbeddedBroker, greeting: bytes
) -> None:
    assert await greet(broker.port, greeting) in (b"", b"\x20\x02\x00\x01")


async def test_a_silent_client_is_let_go(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GREETING", 0.1)
    assert await greet(broker.port, b"\x10") == b""


async def test_it_stops_at_once_with_clients_connected(broker: EmbeddedBroker) -> None:
    node = node_link(broker.port)
    await node.start()
    await until_up(node)
    await asyncio.wait_for(broker.stop(), 2)
    await until_down(node)
    await node.close()


async def test_starting_and_stopping_twice_is_harmless(broker: EmbeddedBroker) -> None:
    port = broker.port
    await broker.start()
    assert broker.port == port
    await broker.stop()
    await broker.stop()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_is_said(broker: EmbeddedBroker) -> None:
    with pytest.raises(LinkError, match=f"127.0.0.1:{broker.port}: Address already in use") as e:
        await EmbeddedBroker(port=broker.port).start()
    assert e.value.hint is not None
    assert "another port" in e.value.hint


async def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(LinkError, match=r"cannot listen on 192\.0\.2\.1"):
        await EmbeddedBroker("192.0.2.1", 1, allow_anonymous=True).start()


async def test_without_amqtt_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(LinkError, match="not installed") as caught:
        await EmbeddedBroker(port=0).start()
    assert caught.value.hint is not None
    assert "pip install 'qis-edge[gateway]'" in caught.value.hint


def test_the_world_is_not_let_in_by_accident() -> None:
    with pytest.raises(UsageError, match="host"):
        EmbeddedBroker("0.0.0.0")
    EmbeddedBroker("0.0.0.0", allow_anonymous=True)
    EmbeddedBroker("localhost")
    EmbeddedBroker("::1")


async def test_with_a_password_file_only_its_users_come_in(tmp_path: Path) -> None:
    users = tmp_path / "users"
    add_user(users, "node", "wrong")
    add_user(users, "node", "right")
    assert users.stat().st_mode & 0o077 == 0
    assert "right" not in users.read_text()
    broker = EmbeddedBroker(port=0, password_file=users)
    await broker.start()
    good = node_link(broker.port, user="node", password="right")
    bad = node_link(broker.port, b"other..\x00", user="node", password="wrong")
    nameless = node_link(broker.port, b"another\x00")
    for link in (good, bad, nameless):
        await link.start()
    await until_up(good)
    await asyncio.sleep(0.3)
    assert not bad.up
    assert not nameless.up
    assert "refuses us: Not authorized" in (bad.stats.last_error or "")
    for link in (good, bad, nameless):
        await link.close()
    await broker.stop()


async def test_a_password_file_that_is_none_is_said(tmp_path: Path) -> None:
    users = tmp_path / "users"
    with pytest.raises(LinkError, match="No such file"):
        await EmbeddedBroker(port=0, password_file=users).start()
    users.write_text("# people\nnode:secret\n")
    with pytest.raises(LinkError, match="users:2: is not name:hash") as caught:
        await EmbeddedBroker(port=0, password_file=users).start()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a:b", "#a", "a\nb"])
def test_names_that_break_the_password_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        add_user(tmp_path / "users", name, "secret")


async def test_comings_and_goings_are_no_news(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        node = node_link(broker.port)
        await node.start()
        await until_up(node)
        await node.close()
        await greet(broker.port, b"\x10\x00")
    assert [r for r in caplog.records if not r.name.startswith("qis_edge")] == []


async def test_in_a_process_of_its_own_it_can_be_killed_and_started_again() -> None:
    command = [sys.executable, "-m", "gateway.broker", "--port"]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*command, str(port)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == f"listening on mqtt://127.0.0.1:{port}\n".encode()
        return process

    def end(process: subprocess.Popen[bytes], sign: signal.Signals) -> int:
        process.send_signal(sign)
        code = process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
        return code

    process = await asyncio.to_thread(start)
    node, gateway = node_link(port), gateway_link(port)
    try:
        await node.start()
        await gateway.start()
        await until_up(node, gateway)
        await asyncio.to_thread(end, process, signal.SIGKILL)
        await until_down(node, gateway)
        process = await asyncio.to_thread(start)
        await until_up(node, gateway)
        await send_when_possible(node, b"frame", UP)
        assert [r.data for r in await receive_done(gateway, 1)] == [b"frame"]
    finally:
        await node.close()
        await gateway.close()
        assert await asyncio.to_thread(end, process, signal.SIGTERM) == 0


def test_its_command_says_errors_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--host", "0.0.0.0"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: host: anyone who reaches 0.0.0.0")
    assert "hint: " in captured.err


def test_its_command_adds_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("getpass.getpass", lambda: "secret")
    users = tmp_path / "users"
    assert module.main(["--add-user", "node", "--password-file", str(users)]) == 0
    assert users.read_text().startswith("node:$argon2")
    assert module.main(["--add-user", "node"]) == 2
    assert "--password-file" in capsys.readouterr().err
