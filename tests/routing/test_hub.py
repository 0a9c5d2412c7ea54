"""What is the hub's alone: tokens, limits, strangers, checks; and a client that is lied to."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway import hub as module
from gateway.cli.hub import checker
from gateway.fleet import Fleet
from gateway.hub import Certificate, Tokens
from gateway.routing import EVERYTHING, Context, Interest, open_engine
from gateway.routing import hub_wire as wire
from gateway.routing.base import MAX_CURSOR
from gateway.testing import collect, eventually, make_entry
from gateway.testing.entries import ADDRESS, STRANGER, accept, entries_of
from qis_edge.core.cbor import dumps
from qis_edge.core.errors import KeyFileError, Reason, Refused, RoutingError
from qis_edge.core.identity import Identity
from tests.cli.kit import command
from tests.routing.hub import READER, TOKEN, HubProcess, serving, tokens_of


@contextlib.asynccontextmanager
async def client(url: str, **more: Any) -> AsyncIterator[Any]:
    engine = open_engine(url, Context(accept, **more))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


async def ask(
    place: str,
    path: str,
    body: bytes | io.BytesIO | None = None,
    token: str = TOKEN,
) -> tuple[int, bytes]:
    """By hand."""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.request("POST" if body is not None else "GET", place + path, data=body) as answer,
    ):
        return answer.status, await answer.read()


# --- who may ask ------------------------------------------------------------------------------


async def test_no_request_goes_without_a_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, place):
        for path, body in (
            ("/v1/status", None),
            ("/v1/cursor", None),
            ("/v1/deposit", b"\x80"),
            ("/v1/query", b""),
            ("/v1/follow", b""),
        ):
            for token in ("", "x", TOKEN[:-1], TOKEN + "0", "ü"):
                assert (await ask(place, path, body, token.encode().decode("latin-1")))[0] == 401
            assert (await ask(place, path, body))[0] in (200, 400)
        assert (await ask(place, "/v2/status"))[0] == 404
        assert (await ask(place, "/v2/status", token="x"))[0] == 401  # tells nothing


async def test_a_reader_may_not_deposit(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, place):
        async with client(f"{place}?token={TOKEN}") as engine:
            await engine.deposit([make_entry(1)])
        async with client(f"{place}?token={READER}") as engine:
            assert await engine.query(EVERYTHING) == [make_entry(1)]
            with pytest.raises(RoutingError, match="may not do that: deposit"):
                await engine.deposit([make_entry(2)])


async def test_tokens_change_while_it_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as (hub, place):
        assert (await ask(place, "/v1/status"))[0] == 200
        other = "another-token-of-the-same-one"
        tokens_of(tmp_path, f"base {other}\n")
        hub.tokens.reload()
        assert (await ask(place, "/v1/status"))[0] == 401
        assert (await ask(place, "/v1/status", token=other))[0] == 200
        tokens_of(tmp_path, "base short\n")
        with pytest.raises(KeyFileError):
            hub.tokens.reload()
        assert (await ask(place, "/v1/status", token=other))[0] == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no token"),
        ("# nothing\n", "has no token"),
        (f"{TOKEN}\n", "line 1"),
        (f"\nbase {TOKEN} write\n", "line 2"),
        ("base s3cret\n", "line 1"),
    ],
)
def test_a_token_file_that_is_none_is_explained(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(KeyFileError, match=words) as caught:
        Tokens(tokens_of(tmp_path, text))
    assert "s3cret" not in str(caught.value)
    assert caught.value.hint


def test_a_token_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tokens_of(tmp_path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="by others"):
        Tokens(path)
    with pytest.raises(KeyFileError, match="cannot be read"):
        Tokens(tmp_path / "missing")


# --- limits -----------------------------------------------------------------------------------


async def test_what_is_not_as_described_is_refused(tmp_path: Path) -> None:
    pair = [ADDRESS, 256]
    question = {"interest": pair, "limit": 5, "since": None, "confidence": 0, "vector": None}
    poll = {"interests": [pair], "after": None, "wait": 0}
    async with serving(tmp_path) as (_, place):
        assert (await ask(place, "/v1/query", dumps(question)))[0] == 200
        assert (await ask(place, "/v1/follow", dumps(poll)))[0] == 200
        for path, good, wrong in (
            ("/v1/query", question, {"limit": -1}),
            ("/v1/query", question, {"limit": wire.MAX_LIMIT + 1}),
            ("/v1/query", question, {"interest": [ADDRESS, 257]}),
            ("/v1/query", question, {"interest": [ADDRESS[:-1], 1]}),
            ("/v1/query", question, {"interest": ADDRESS}),
            ("/v1/query", question, {"since": True}),
            ("/v1/query", question, {"vector": b"1234567"}),
            ("/v1/query", question, {"vector": bytes(8)}),
            ("/v1/query", question, {"vector": b"\0\0\0\0\0\0\xf8\x7f"}),
            ("/v1/follow", poll, {"wait": wire.MAX_WAIT + 1}),
            ("/v1/follow", poll, {"after": bytes(MAX_CURSOR + 1)}),
            ("/v1/follow", poll, {"interests": [pair] * (wire.MAX_INTERESTS + 1)}),
            ("/v1/follow", poll, {"interests": {}}),
        ):
            status, said = await ask(place, path, dumps(good | wrong))
            assert (status, said.count(b"\n")) == (400, 1), wrong
        for body in (b"", b"\xff", b"\x80\x80", dumps([1]), dumps([b""] * 1001), b"\x9f\xff"):
            assert (await ask(place, "/v1/deposit", body))[0] == 400
        assert (await ask(place, "/v1/deposit", io.BytesIO(bytes(wire.MAX_BODY + 1))))[0] == 413
        assert (await ask(place, "/v1/deposit", dumps([])))[0] == 200


async def test_who_asks_too_often_has_to_wait(tmp_path: Path) -> None:
    async with serving(tmp_path, rate=10) as (_, place):
        found = [(await ask(place, "/v1/cursor"))[0] for _ in range(40)]
        assert found[:20] == [200] * 20
        assert 429 in found
        # Others are not held up, and who waits is served.
        assert (await ask(place, "/v1/cursor", token=READER))[0] == 200
        async with client(f"{place}?token={TOKEN}") as engine:
            assert await engine.query(EVERYTHING) == []


async def test_polls_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_POLLS", 2)
    body = wire.Poll(frozenset([EVERYTHING]), None, 20).encode()
    async with serving(tmp_path) as (hub, place):
        held = [asyncio.create_task(ask(place, "/v1/follow", body)) for _ in range(2)]
        use = hub._use(module.Client("base", True))
        await eventually(lambda: use.polls == 2, 60)
        assert (await ask(place, "/v1/follow", body))[0] == 429
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        # Who hangs up holds nothing.
        await eventually(lambda: use.polls == 0, 60)


async def test_a_poll_that_comes_late_is_not_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is of no interest may come between two polls."""
    monkeypatch.setattr(wire, "MAX_WAIT", 3600)
    async with serving(tmp_path) as (_, place), client(f"{place}?token={TOKEN}") as engine:
        await engine.deposit([make_entry(1)])
        start = await engine.cursor()
        await engine.deposit([make_entry(2, fingerprint=STRANGER)])
        body = wire.Poll(frozenset([Interest(ADDRESS)]), start, 3600).encode()
        status, answer = await asyncio.wait_for(ask(place, "/v1/follow", body), 60)
        page = wire.Page.decode(answer)
        assert (status, page.raws, page.live) == (200, (), True)
        assert page.cursor == await engine.cursor() != start


async def test_strangers_have_little_time_and_little_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRANGE", 0.3)
    async with serving(tmp_path) as (_, place):
        port = int(place.rpartition(":")[2])
        for sent in (b"", b"GET /v1/status HTTP/1.1\r\n", b"POST /v1/deposit HTTP/1.1\r\nX: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 60) == b""
            writer.close()
    monkeypatch.setattr(module, "STRANGE", 15.0)
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 4)
    async with serving(tmp_path) as (_, place), client(f"{place}?token={TOKEN}") as engine:
        port = int(place.rpartition(":")[2])
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
        assert await engine.deposit([make_entry(1)]) == 1
        assert (await ask(place, "/v1/cursor"))[0] == 200
        for _, writer in crowd:
            writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY", 0.2)
    async with serving(tmp_path) as (_, place):
        port = int(place.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n"
        writer.write(f"POST /v1/deposit HTTP/1.1\r\n{head}abc".encode())
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 60)
        writer.close()


# --- what it takes ----------------------------------------------------------------------------


async def test_what_it_never_takes_holds_up_nothing(tmp_path: Path) -> None:
    forged = make_entry(5)._replace(raw=make_entry(5).raw[:-1] + b"\0")
    broken = make_entry(6)._replace(raw=make_entry(6).raw[:-1])
    async with (
        serving(tmp_path, check=accept) as (hub, place),
        client(f"{place}?token={TOKEN}") as engine,
    ):
        assert await engine.deposit([make_entry(1), forged, broken, make_entry(2)]) == 2
        assert await engine.query(EVERYTHING) == [make_entry(2), make_entry(1)]
        assert "refused 2 packets for good" in (await engine.status()).detail
        assert hub.refused == 2


def test_a_fleet_refuses_what_is_certainly_wrong(tmp_path: Path) -> None:
    root = Identity.generate()
    with contextlib.closing(Fleet(tmp_path / "fleet.db", root.public, time.time())) as fleet:
        check = checker(fleet)
        assert check(make_entry(1).raw) == make_entry(1)  # nobody knows its signer
        with pytest.raises(Refused) as caught:
            check(make_entry(1).raw[:-1])
        assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize("keep", [True, False])
async def test_what_expired_goes_unless_it_is_kept(tmp_path: Path, keep: bool) -> None:
    old, fresh = make_entry(1), make_entry(2, time=int(time.time()))
    async with (
        serving(tmp_path, "sqlite:x.db", keep=True) as (_, place),
        client(f"{place}?token={TOKEN}") as engine,
    ):
        await engine.deposit([old, fresh])
    async with (
        serving(tmp_path, "sqlite:x.db", keep=keep) as (_, place),
        client(f"{place}?token={TOKEN}") as engine,
    ):

        async def settled() -> bool:
            return bool(await engine.query(EVERYTHING) == ([fresh, old] if keep else [fresh]))

        await eventually(settled, 60)  # it looks when it starts


async def test_an_engine_that_is_away_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.db").mkdir()
    async with (
        serving(tmp_path, "sqlite:x.db") as (_, place),
        client(f"{place}?token={TOKEN}") as engine,
    ):
        status = await engine.status()
        assert not status.ok
        assert "cannot be opened" in status.detail
        with pytest.raises(RoutingError, match="the engine is away"):
            await engine.deposit([make_entry(1)])
        (tmp_path / "x.db").rmdir()

        async def deposited() -> bool:
            with contextlib.suppress(RoutingError):
                return bool(await engine.deposit([make_entry(1)]))
            return False

        await eventually(deposited, 60)


async def test_an_engine_that_lost_everything_is_noticed(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path, "sqlite:routing.db", "--keep")
    hub.start()
    try:
        async with client(hub.url) as engine:
            born = engine.incarnation
            await engine.deposit([make_entry(1)])
            assert await asyncio.to_thread(hub.stop) == 0
            for name in ("routing.db", "routing.db-wal", "routing.db-shm"):
                (tmp_path / name).unlink(missing_ok=True)
            await asyncio.to_thread(hub.start)
            with pytest.raises(RoutingError, match="deposit everything anew"):
                await engine.deposit([make_entry(2)])
            assert engine.incarnation != born
            assert await engine.deposit([make_entry(1), make_entry(2)]) == 2
    finally:
        hub.kill()


async def test_hubs_make_a_tree(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    async with (
        serving(tmp_path / "top", "sqlite:x.db", keep=True) as (_, top),
        serving(tmp_path, f"{top}?token={TOKEN}") as (_, middle),
        client(f"{middle}?token={TOKEN}") as leaf,
        client(f"{top}?token={READER}") as other,
    ):
        subscription = leaf.follow(frozenset([Interest(ADDRESS)]))
        await collect(subscription, 0, 60, live=True)
        entries = [make_entry(number) for number in range(5)]
        assert await leaf.deposit(entries) == 5
        assert await other.query(Interest(ADDRESS)) == entries[::-1]
        batches = await collect(subscription, 5, 60)
        assert entries_of(batches) == entries
        assert len(batches[-1].cursor) <= MAX_CURSOR
        assert await leaf.cursor() == await other.cursor()


# --- TLS --------------------------------------------------------------------------------------


async def test_tls_is_checked(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "cert.pem")
    )
    certificate = Certificate(tmp_path / "cert.pem", None)
    async with serving(tmp_path, certificate=certificate) as (_, place):
        async with client(f"{place}?token={TOKEN}&ca={tmp_path}/ca.pem") as engine:
            assert await engine.deposit([make_entry(1)]) == 1
        with pytest.raises(RoutingError, match="certificate") as caught:
            async with client(f"{place}?token={TOKEN}"):
                pass
        assert "ca=" in (caught.value.hint or "")
        with pytest.raises(RoutingError, match="cannot be used"):
            async with client(f"{place}?token={TOKEN}&ca=/missing"):
                pass
    with pytest.raises(KeyFileError, match="cannot be used"):
        Certificate(tmp_path / "ca.pem", None).load(ssl.create_default_context())


# --- a client that is lied to -----------------------------------------------------------------


@contextlib.asynccontextmanager
async def lying(answers: dict[str, Callable[[], Awaitable[web.Response]]]) -> AsyncIterator[str]:
    """A server that says what it likes."""

    async def handle(request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        if name == "status" and name not in answers:
            return web.Response(body=wire.Report("x", True, 1).encode())
        return await answers[name]()

    application = web.Application()
    application.router.add_route("*", "/v1/{name}", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}?token=x&timeout=1"
    finally:
        await runner.cleanup()


def saying(body: bytes, status: int = 200) -> Callable[[], Awaitable[web.Response]]:
    async def answer() -> web.Response:
        return web.Response(body=body, status=status)

    return answer


GOOD = make_entry(3)
LIES = (
    make_entry(4, fingerprint=STRANGER).raw,  # not asked for
    GOOD.raw,  # twice
    GOOD.raw[:-1] + b"\0",  # forged
    make_entry(5, identity=Identity.generate()).raw,
    b"",
    b"no packet",
)


async def test_what_was_not_asked_for_is_dropped_and_counted() -> None:
    page = wire.Page((GOOD.raw, *LIES), b"cursor", True).encode()
    async with (
        lying({"query": saying(page), "follow": saying(page)}) as place,
        client(place) as engine,
    ):
        assert await engine.query(Interest(ADDRESS), since=GOOD.time) == [GOOD]
        assert (await engine.status()).refused == len(LIES)
        assert await engine.query(Interest(ADDRESS), since=GOOD.time + 1) == []
        assert await engine.query(Interest(ADDRESS), confidence=99) == []
        subscription = engine.follow(frozenset([Interest(ADDRESS)]))
        assert entries_of(await collect(subscription, 1, 60)) == [GOOD]
        with pytest.raises(RoutingError, match="does not move on"):
            await collect(subscription, 1, 60)
        await subscription.close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"", "no hub's answer"),
        (200, b"<html>hello</html>", "no hub's answer"),
        (200, dumps({"packets": [1], "cursor": b"", "live": True}), "no hub's answer"),
        (200, dumps({"packets": [], "cursor": bytes(65), "live": True}), "no hub's answer"),
        (200, bytes(wire.MAX_ANSWER + 1), "more than was asked for"),
        (302, b"", "there is no hub"),
        (404, b"", "there is no hub"),
        (500, b"ouch\x1b[2J\nsecond", r"ouch\\x1b\[2J \(HTTP status 500\)"),
        (429, b"", "no answer within 1 s"),
    ],
)
async def test_what_is_no_answer_is_an_error(status: int, body: bytes, words: str) -> None:
    async with lying({"query": saying(body, status)}) as place, client(place) as engine:
        with pytest.raises(RoutingError, match=words):
            await engine.query(EVERYTHING)
        assert (await engine.status()).ok


async def test_a_hub_that_is_none_does_not_open() -> None:
    for body in (b"", dumps({"hub": 2}), dumps({"hub": 1}), b"<html>"):
        async with lying({"status": saying(body)}) as place:
            engine = open_engine(place)
            with pytest.raises(RoutingError, match="no hub's answer"):
                await engine.open()
            await engine.close()


async def test_a_hub_that_hurries_its_polls_keeps_nobody_busy() -> None:
    asked = 0
    page = wire.Page((), b"same", True).encode()

    async def answer() -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(body=page)

    async with lying({"follow": answer}) as place, client(place) as engine:
        subscription = engine.follow(frozenset([EVERYTHING]))
        with pytest.raises(TimeoutError):
            await collect(subscription, 1, 0.5)
        await subscription.close()
    assert asked < 20


@given(st.binary(max_size=200))
def test_whatever_comes_is_decoded_or_refused(data: bytes) -> None:
    decoders: tuple[Callable[[bytes], object], ...] = (
        *(kind.decode for kind in (wire.Question, wire.Poll, wire.Page, wire.Receipt)),
        wire.Report.decode,
        wire.deposited,
    )
    for decode in decoders:
        with contextlib.suppress(Refused):
            decode(data)


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 256),
    st.none() | st.lists(st.floats(allow_nan=False), max_size=4),
)
def test_what_is_said_is_understood(address: bytes, bits: int, vector: list[float] | None) -> None:
    near = None if vector is None else tuple(vector)
    question = wire.Question(Interest(address, bits), 7, 3, 50, near)
    assert wire.Question.decode(question.encode()) == question
    poll = wire.Poll(frozenset([Interest(address, bits), EVERYTHING]), address, 9)
    assert wire.Poll.decode(poll.encode()) == poll
    report = wire.Report("x", True, None, "", False)
    assert wire.Report.decode(report.encode()) == report
    assert wire.Receipt.decode(wire.Receipt(3, ((1, 2),)).encode()) == wire.Receipt(3, ((1, 2),))


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:8383"], "tokens would travel in the clear"),
        (["--listen", "here"], "not an address and port"),
        (["--key", "k.pem"], "needs --cert"),
        (["--rate", "0"], "--rate"),
        (["--fleet", "/nonexistent"], "there is no /nonexistent/fleet.toml"),
        (["--cert", "/nonexistent"], "the certificate /nonexistent cannot be used"),
        (["--tokens", "/nonexistent"], "/nonexistent cannot be read"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    tokens = ["--tokens", str(tokens_of(tmp_path)), "--listen", "127.0.0.1:0"]
    done = command("gateway", "hub", "sqlite:x.db", *tokens, "--state", str(tmp_path), *arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr


async def test_a_hub_ends_in_good_order_with_polls_under_way(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path)
    hub.start()
    try:
        async with client(hub.url) as engine:
            subscription = engine.follow(frozenset([EVERYTHING]))
            await collect(subscription, 0, 60, live=True)
            waiting = asyncio.ensure_future(anext(aiter(subscription)))
            await asyncio.sleep(0.2)  # it is held back over there
            began = time.monotonic()
            assert await asyncio.to_thread(hub.stop) == 0
            assert time.monotonic() - began < 20  # the poll would be held for longer
            with pytest.raises(RoutingError):
                await asyncio.wait_for(waiting, 60)
            await asyncio.to_thread(hub.start)
            fresh = make_entry(9, time=int(time.time()))
            await engine.deposit([fresh])
            assert entries_of(await collect(subscription, 1, 60)) == [fresh]
            await subscription.close()
        assert "Traceback" not in hub.log()
    finally:
        hub.kill()


async def test_a_signal_has_it_read_its_tokens_again(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path)
    hub.start()
    place = f"http://127.0.0.1:{hub.port}"
    other = "another-token-of-the-same-one"
    try:
        assert hub.process is not None
        hub.tokens.write_text("nonsense\n")
        hub.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "line 1" in hub.log(), 60)
        assert (await ask(place, "/v1/status"))[0] == 200
        hub.tokens.write_text(f"base {other}\n")
        hub.process.send_signal(signal.SIGHUP)

        async def changed() -> bool:
            return (await ask(place, "/v1/status", token=other))[0] == 200

        await eventually(changed, 60)
        assert (await ask(place, "/v1/status"))[0] == 401
        assert other not in hub.log()
    finally:
        hub.kill()
