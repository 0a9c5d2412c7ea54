"""``mqtt:`` on a real Mosquitto: held to the suite, restarted, killed, and written to."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.routing import EVERYTHING, Entry, RoutingLayer, mqtt, open_engine
from gateway.routing.mqtt import MqttFeed
from gateway.routing.url import EngineUrl
from gateway.testing import (
    DurableConformance,
    LoginConformance,
    MediumConformance,
    RoutingWorld,
    SpoolConformance,
    UrlConformance,
    collect,
    eventually,
    make_entry,
)
from gateway.testing.entries import entries_of
from qis_edge.core.errors import RoutingError
from tests.mosquitto import Mosquitto, require_mosquitto

#: Seconds that a single thing may take.
PATIENCE = 60.0

#: With its default of 1,000 queued messages: what is retained is more than that.
LINES = ("allow_anonymous true",)
PREFIX = "north/packets"


class MqttWorld(RoutingWorld):
    folder_each = True

    def __init__(
        self, folder: Path, *lines: str, login: str = "", options: str = "keep=yes"
    ) -> None:
        self.folder = folder
        self.broker = Mosquitto(folder / "broker", lines or LINES, persistent=True)
        self._options = options
        self.url = self._url(login)

    def _url(self, login: str) -> str:
        return f"mqtt://{login}127.0.0.1:{self.broker.port}/{PREFIX}?{self._options}"

    async def write(self, entry: Entry, raw: bytes) -> None:
        # An empty payload is how MQTT takes away what is retained: it can lie nowhere.
        await self.say(mqtt.topic_of(PREFIX, entry), raw or b"\0")

    async def say(self, topic: str, payload: bytes) -> None:
        """As anybody who may publish there: retained."""
        feed = MqttFeed(EngineUrl.parse(self.url), self.context("stranger"))
        await feed.open()
        try:
            link = await feed._connected()
            await link.publish([(topic, payload, None, True)])
        finally:
            await feed.close()

    async def fail(self) -> None:
        await asyncio.to_thread(self.broker.stop)

    async def heal(self) -> None:
        await asyncio.to_thread(self.broker.start)

    def intruder(self) -> RoutingLayer:
        return open_engine(self._url("base:s3cret@"), self.context())


@contextlib.asynccontextmanager
async def running(world: MqttWorld) -> AsyncIterator[MqttWorld]:
    world.broker.start()
    try:
        yield world
    finally:
        world.broker.kill()


def passwords(folder: Path) -> Path:
    """The password of ``base`` is ``right``."""
    folder.mkdir(parents=True, exist_ok=True)
    tool = shutil.which("mosquitto_passwd")
    assert tool is not None  # of the same package as the broker
    path = folder / "passwords"
    subprocess.run([tool, "-b", "-c", str(path), "base", "right"], check=True, capture_output=True)
    return path


class TestMqtt(DurableConformance, MediumConformance, LoginConformance, SpoolConformance):
    ordered = False  # over addresses: what is retained has no order but what clocks say

    @contextlib.asynccontextmanager
    async def world(self, folder: Path) -> AsyncIterator[RoutingWorld]:
        require_mosquitto()
        lines = ("allow_anonymous false", f"password_file {passwords(folder / 'broker')}")
        async with running(MqttWorld(folder, *lines, login="base:right@")) as world:
            yield world


class TestMqttUrl(UrlConformance):
    right = "mqtts://base:s3cret@broker.example/north?keep=yes"
    wrong = (
        ("mqtt:", "no server is named"),
        ("mqtt://a,b", "takes one broker"),
        ("mqtt://a/x/%23", "without wildcards"),
        ("mqtt://a?ca=x", "without TLS"),
        ("mqtt://u:s3cret@a", "in the clear"),
        ("mqtt://a?sync=1", "unknown option 'sync'"),
        ("mqtt://a?reread=soon", "reread must be"),
        ("mqtt://a?keep=perhaps", "keep must be"),
    )
    nobody = "mqtt://127.0.0.1:9"


# --- what is its own ---------------------------------------------------------------------------


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[MqttWorld]:
    async with running(MqttWorld(tmp_path)) as made:
        yield made


@contextlib.asynccontextmanager
async def opened(world: MqttWorld, gateway: str) -> AsyncIterator[RoutingLayer]:
    engine = world.engine(gateway)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def holds(engine: RoutingLayer, entries: Sequence[Entry]) -> bool:
    found = await engine.query(EVERYTHING, limit=len(entries) + 1)
    return sorted(found) == sorted(entries)


async def test_more_is_retained_than_a_broker_queues(world: MqttWorld) -> None:
    entries = [make_entry(n, fingerprint=bytes([n % 7]) * 32) for n in range(4000)]
    async with opened(world, "here") as here:
        for start in range(0, len(entries), 500):
            await here.deposit(entries[start : start + 500])
    async with opened(world, "there") as there:
        await eventually(lambda: holds(there, entries), PATIENCE)
        # As it was published, although a broker keeps no order.
        subscription = there.follow(frozenset([EVERYTHING]))
        assert entries_of(await collect(subscription, 4000, PATIENCE)) == entries
        await subscription.close()


async def test_a_broker_that_lost_everything_is_noticed(tmp_path: Path) -> None:
    world = MqttWorld(tmp_path)
    entries = [make_entry(number) for number in range(20)]
    async with running(world), opened(world, "here") as here:
        born = here.incarnation
        assert born
        await here.deposit(entries[:10])
        await asyncio.to_thread(world.broker.restart)  # killed: nothing was saved

        async def anew() -> bool:
            with contextlib.suppress(RoutingError):
                await here.open()
                await here.deposit(entries[10:])
            return here.incarnation not in ("", born)

        await eventually(anew, PATIENCE)

        async def again() -> bool:
            with contextlib.suppress(RoutingError):
                await here.deposit(entries)
                return True
            return False

        await eventually(again, PATIENCE)
        async with opened(world, "there") as there:
            await eventually(lambda: holds(there, entries), PATIENCE)
            assert there.incarnation == here.incarnation


async def test_the_broker_forgets_what_expired(tmp_path: Path) -> None:
    world = MqttWorld(tmp_path, options="reread=0")
    old, fresh = make_entry(1), make_entry(2, time=int(time.time()))
    number = 0

    async def newcomer() -> bool:
        nonlocal number
        number += 1
        async with opened(world, f"there{number}") as there:
            await eventually(lambda: caught_up(there), PATIENCE)
            return await holds(there, [fresh])

    async with running(world):
        async with opened(world, "here") as here:
            assert await here.deposit([old, fresh]) == 2
        await eventually(newcomer, PATIENCE)  # it goes by whole seconds


async def caught_up(engine: RoutingLayer) -> bool:
    return not (await engine.status()).behind


async def test_everything_is_read_again_now_and_then(tmp_path: Path) -> None:
    world = MqttWorld(tmp_path, options="keep=yes&reread=1")
    async with running(world), opened(world, "here") as here, opened(world, "there") as there:
        assert isinstance(there, mqtt.MqttEngine)
        feed = there._feed
        assert isinstance(feed, MqttFeed)
        await here.deposit([make_entry(1)])
        await eventually(lambda: holds(there, [make_entry(1)]), PATIENCE)
        token = feed._token
        await eventually(lambda: feed._token != token, PATIENCE)
        await here.deposit([make_entry(2)])
        await eventually(lambda: holds(there, [make_entry(1), make_entry(2)]), PATIENCE)
        status = await there.status()
        assert (status.ok, status.refused) == (True, 0)


async def test_strangers_who_write_what_is_ours_to_say_are_survived(world: MqttWorld) -> None:
    async with opened(world, "here") as here:
        await here.deposit([make_entry(1)])
        await world.say(f"{PREFIX}/born", b"\xff" * 500)
        await world.say(f"{PREFIX}/-/nobody", b"x")
        await world.say(f"{PREFIX}/00/x/y/z", bytes(100_000))  # larger than we take
        await world.say(f"{PREFIX}/00/x/y/w", b"\xff" * 1500)

        async def again() -> bool:
            with contextlib.suppress(RoutingError):
                await here.open()
                await here.deposit([make_entry(1), make_entry(2)])
                return True
            return False

        await eventually(again, PATIENCE)
        await eventually(lambda: holds(here, [make_entry(1), make_entry(2)]), PATIENCE)
        async with opened(world, "there") as there:
            await eventually(lambda: holds(there, [make_entry(1), make_entry(2)]), PATIENCE)


async def test_a_broker_that_does_not_answer_is_away(
    world: MqttWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "PATIENCE", 0.5)
    async with opened(world, "here") as here:
        await here.deposit([make_entry(1)])
        world.broker.pause()
        with pytest.raises(RoutingError, match="does not answer"):
            await here.deposit([make_entry(2)])
        assert await here.query(EVERYTHING) == [make_entry(1)]
        world.broker.resume()

        async def deposited() -> bool:
            with contextlib.suppress(RoutingError):
                await here.deposit([make_entry(2)])
                return True
            return False

        await eventually(deposited, PATIENCE)


async def test_a_broker_that_lets_us_write_nothing_is_said(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    acl.chmod(0o600)
    world = MqttWorld(tmp_path, *LINES, f"acl_file {acl}")
    async with running(world):
        engine = world.engine()
        with pytest.raises(RoutingError) as caught:
            await engine.open()
        assert "access list" in (caught.value.hint or "")
        await engine.close()
