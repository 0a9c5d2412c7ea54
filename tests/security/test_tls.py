"""Certificates of clients and the ACL on a real Mosquitto, made as docs/tls.md says."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Self

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from qis_edge.core.errors import LinkError
from qis_edge.links.base import UP, Role, down, peers
from qis_edge.links.mqtt import MqttLink
from qis_edge.testing.links import receive_done
from tests.links.brokers import GATEWAY, NODE, SITE, settings, started, until
from tests.mosquitto import Mosquitto, require_mosquitto, running
from tests.security.authority import PAGE, Authority

OTHER = b"node\x00\x00\x00\x02"
ADDRESS = b"\xab" * 32
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require_mosquitto()
    return Authority(tmp_path_factory.mktemp("authority"))


def link(
    role: Role, broker: Mosquitto, ca: Path, login: tuple[Path, Path] | None, kid: bytes
) -> MqttLink:
    """A node's or a gateway's link, with its certificate."""
    tls: dict[str, Any] = {"tls": True, "ca": ca, "server_name": "localhost"}
    if login is not None:
        tls |= {"cert": login[0], "key": login[1]}
    return MqttLink(settings(broker.port, **tls), role, SITE, kid, name=role.name.lower())


async def says(link: MqttLink, words: str) -> None:
    """It comes to say so; until it does it tries again."""
    await until(lambda: words in (link.stats.last_error or ""), 60)


class Anybody:
    """A client with a certificate that does what it likes; what it hears and is told.

    :param version: of MQTT; with 5 the broker says what it refuses.
    """

    def __init__(self, broker: Mosquitto, ca: Path, login: tuple[Path, Path]) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.refused: dict[int, str] = {}
        self.told: set[int] = set()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.tls_set(str(ca), str(login[0]), str(login[1]))
        self.client.on_message = lambda _c, _u, m: self.heard.append((m.topic, bytes(m.payload)))
        self.client.on_publish = self._published
        self.client.on_subscribe = lambda _c, _u, mid, _r, _p: self.told.add(mid)
        self._port = broker.port

    def _published(self, _c: object, _u: object, mid: int, reason: Any, _p: object) -> None:
        if reason.is_failure:
            self.refused[mid] = str(reason)
        self.told.add(mid)

    def __enter__(self) -> Self:
        self.client.connect("localhost", self._port)
        self.client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    async def listen(self, *topics: str) -> None:
        """Ask for topics; the broker never says that it forbids them."""
        await until(self.client.is_connected, 30)
        _, mid = self.client.subscribe([(topic, 1) for topic in topics])
        await until(lambda: mid in self.told, 30)

    async def publish(self, topic: str) -> str | None:
        """What the broker says against it, if it does."""
        await until(self.client.is_connected, 30)
        mid = self.client.publish(topic, b"forged", 1).mid
        await until(lambda: mid in self.told, 30)
        return self.refused.get(mid)


async def test_a_node_can_neither_speak_nor_listen_as_another(
    authority: Authority, tmp_path: Path
) -> None:
    stranger = authority.node(OTHER)
    with running(authority.broker(tmp_path)) as broker:
        node = link(Role.NODE, broker, authority.ca, authority.node(NODE), NODE)
        gateway = link(Role.GATEWAY, broker, authority.ca, authority.gateway(), GATEWAY)
        async with started(gateway), started(node):
            await node.listen(frozenset([ADDRESS]))
            with Anybody(broker, authority.ca, stranger) as other:
                for topic in (
                    f"up/{NODE.hex()}",
                    f"down/{NODE.hex()}",
                    f"down/{OTHER.hex()}",
                    f"state/{NODE.hex()}",
                    f"peers/{'ab' * 16}",
                ):
                    said = await other.publish(f"qis/v1/{SITE}/{topic}")
                    assert said == "Not authorized", topic
            with Anybody(broker, authority.ca, stranger) as other:  # anew: it was thrown out
                await other.listen("qis/v1/#", "#", f"qis/v1/{SITE}/up/+")
                assert await other.publish(f"qis/v1/{SITE}/up/{OTHER.hex()}") is None
                await node.send(b"reading", UP)
                await gateway.send(b"for the node", down(NODE))
                await gateway.send(b"for the other", down(OTHER))
                await gateway.send(b"for all", peers(ADDRESS))
                found = [(r.claimed, r.data) for r in await receive_done(gateway, 2)]
                assert found == [(OTHER, b"forged"), (NODE, b"reading")]  # as whom it spoke
                mine = {r.data for r in await receive_done(node, 2)}
                assert mine == {b"for the node", b"for all"}
                await until(lambda: {data for _, data in other.heard} >= {b"for all"}, 30)
            assert {payload for _, payload in other.heard} == {b"for the other", b"for all"}


async def test_the_broker_takes_a_client_for_its_certificate_whatever_it_says(
    authority: Authority, tmp_path: Path
) -> None:
    """User name and client id of another, or of the gateway, in its own connection."""
    login = authority.node(OTHER)
    with running(authority.broker(tmp_path)) as broker:
        gateway = link(Role.GATEWAY, broker, authority.ca, authority.gateway(), GATEWAY)
        async with started(gateway):
            other = Anybody(broker, authority.ca, login)
            other.client.username_pw_set("gateway", "anything")
            with other:
                topic = f"qis/v1/{SITE}/down/{NODE.hex()}"
                assert await other.publish(topic) == "Not authorized"
            assert gateway.stats.connects == 1


async def test_without_a_certificate_nobody_gets_in(authority: Authority, tmp_path: Path) -> None:
    with running(authority.broker(tmp_path)) as broker:
        node = link(Role.NODE, broker, authority.ca, None, NODE)
        async with started(node, wait=False):
            await says(node, "the broker wants a certificate of ours")
            assert not node.up


async def test_a_certificate_of_another_authority_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path / "foreign").node(NODE)
    with running(authority.broker(tmp_path)) as broker:
        node = link(Role.NODE, broker, authority.ca, foreign, NODE)
        async with started(node, wait=False):
            await says(node, "does not know the authority of our certificate")
            assert not node.up


async def test_an_expired_certificate_is_refused_and_a_renewed_one_taken(
    authority: Authority, tmp_path: Path
) -> None:
    past = ("-days 825", "-not_before 20200101000000Z -not_after 20210101000000Z")
    try:
        cert, key = authority.node(NODE, change=past)
    except AssertionError:  # OpenSSL before 3.4 sets an end by days alone
        cert, key = authority.node(NODE, change=("-days 825", "-days -1"))
    with running(authority.broker(tmp_path)) as broker:
        node = link(Role.NODE, broker, authority.ca, (cert, key), NODE)
        async with started(node, wait=False):
            await says(node, "our certificate has expired, says the broker")
            assert not node.up
            authority.node(NODE)  # writes over both
            await until(lambda: node.up, 60)


async def test_a_broker_of_another_authority_is_not_believed(
    authority: Authority, tmp_path: Path
) -> None:
    """And nothing of ours is sent to it."""
    foreign = Authority(tmp_path / "foreign")
    with running(foreign.broker(tmp_path)) as broker:
        node = link(Role.NODE, broker, authority.ca, authority.node(NODE), NODE)
        async with started(node, wait=False):
            await says(node, "leads to an unknown authority")
            assert not node.up


async def test_a_nodes_certificate_makes_no_broker(authority: Authority, tmp_path: Path) -> None:
    """A stolen node cannot stand in for the broker, though its authority is the right one."""
    cert, key = authority.node(OTHER)
    lines = ["allow_anonymous true", f"cafile {authority.ca}", f"certfile {cert}", f"keyfile {key}"]
    with running(Mosquitto(tmp_path, lines)) as impostor:
        node = link(Role.NODE, impostor, authority.ca, authority.node(NODE), NODE)
        async with started(node, wait=False):
            await says(node, "the broker's certificate")
            assert not node.up


async def test_a_brokers_certificate_makes_no_client(authority: Authority, tmp_path: Path) -> None:
    login = (authority.folder / "broker.pem", authority.folder / "broker-key.pem")
    with running(authority.broker(tmp_path)) as broker:
        node = link(Role.NODE, broker, authority.ca, login, NODE)
        async with started(node, wait=False):
            await says(node, "the broker does not take our certificate")


async def test_a_request_gets_no_name_that_it_asks_for(authority: Authority) -> None:
    """The authority says the name; a request for the broker's is signed as the node's."""
    hostile = (
        "-subj /CN=gateway -addext subjectAltName=DNS:localhost -addext basicConstraints=CA:TRUE"
    )
    cert, _ = authority.node(
        OTHER, change=('-subj "/CN=$KID" \\\n    -keyout', f"{hostile} -keyout")
    )
    shown = authority.run(
        f"openssl x509 -noout -subject -ext subjectAltName,basicConstraints -in {cert}"
    )
    assert f"CN = {OTHER.hex()}" in shown
    assert "localhost" not in shown
    assert "CA:TRUE" not in shown


async def test_a_stolen_node_is_kept_off_the_broker(authority: Authority, tmp_path: Path) -> None:
    (lock,) = re.findall(r"```text\n(user .*?)```", PAGE, re.DOTALL)
    lock = lock.replace("0011223344556677", OTHER.hex())
    with running(authority.broker(tmp_path, lock)) as broker:
        gateway = link(Role.GATEWAY, broker, authority.ca, authority.gateway(), GATEWAY)
        node = link(Role.NODE, broker, authority.ca, authority.node(NODE), NODE)
        async with started(gateway), started(node):
            with Anybody(broker, authority.ca, authority.node(OTHER)) as thief:
                own = f"qis/v1/{SITE}/up/{OTHER.hex()}"
                assert await thief.publish(own) == "Not authorized"
            with Anybody(broker, authority.ca, authority.node(OTHER)) as thief:
                await thief.listen("qis/v1/+/peers/+", "qis/v1/+/down/+")
                await gateway.send(b"for the thief", down(OTHER))
                await gateway.send(b"for all", peers(ADDRESS))
                await node.send(b"reading", UP)
                assert [r.data for r in await receive_done(gateway, 1)] == [b"reading"]
                await thief.listen("qis/v1/+/state/+")  # answered after what went before
            assert thief.heard == []


def test_keys_are_made_for_their_owner_alone(authority: Authority) -> None:
    made = [authority.folder / "ca-key.pem", authority.folder / "broker-key.pem"]
    made.append(authority.node(NODE)[1])
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_what_the_page_explains_is_said() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert len(quoted) >= 8
    sources = "\n".join(path.read_text() for path in (ROOT / "qis_edge" / "links").glob("mqtt*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    assert [text for text in quoted if text not in joined] == []


def test_the_page_names_what_can_be_copied() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE)
    assert {"mosquitto.conf", "mosquitto.acl"} <= set(links)
    with contextlib.chdir(ROOT / "docs"):
        assert [name for name in links if not Path(name).exists()] == []


@pytest.mark.parametrize("together", [False, True])
async def test_a_key_that_others_can_read_makes_no_link(
    authority: Authority, tmp_path: Path, together: bool
) -> None:
    cert, key = authority.node(NODE)
    if together:
        cert.write_bytes(cert.read_bytes() + key.read_bytes())
    loose = cert if together else key
    loose.chmod(0o644)
    tls: dict[str, Any] = {"tls": True, "ca": authority.ca, "cert": cert}
    own = settings(1, **tls, **({} if together else {"key": key}))
    node = MqttLink(own, Role.NODE, SITE, NODE, name="node")
    with pytest.raises(LinkError, match="can be read by others") as error:
        await node.start()
    assert error.value.hint == f"chmod 600 {loose}"
    loose.chmod(0o600)
    own.check_key()
