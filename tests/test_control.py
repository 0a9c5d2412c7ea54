from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

from qis_edge import control
from qis_edge.control import ControlServer, is_running, request
from qis_edge.core.errors import NotRunning, QisError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


async def echo(args: Mapping[str, Any]) -> Any:
    return {"got": dict(args), "raw": b"\x00\xff"}


async def refuse(_: Mapping[str, Any]) -> Any:
    raise QisError("no such node", hint="qis-gateway nodes lists them")


async def fail(_: Mapping[str, Any]) -> Any:
    raise RuntimeError("secret detail")


HANDLERS = {"echo": echo, "refuse": refuse, "fail": fail}


async def ask(state: Path, verb: str, args: dict[str, Any] | None = None, **more: Any) -> Any:
    return await asyncio.to_thread(request, state, verb, args, **more)


async def raw(state: Path, *lines: bytes) -> list[bytes]:
    reader, writer = await asyncio.open_unix_connection(state / control.NAME)
    answers = []
    for line in lines:
        writer.write(line)
        await writer.drain()
        answers.append(await reader.readline())
    writer.close()
    await writer.wait_closed()
    return answers


async def test_a_request_is_answered(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, HANDLERS):
        assert await ask(tmp_path, "echo", {"a": [1, "é"]}) == {
            "got": {"a": [1, "é"]},
            "raw": "00ff",
        }


async def test_a_refusal_has_its_hint(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, HANDLERS):
        with pytest.raises(QisError, match="no such node") as error:
            await ask(tmp_path, "refuse")
        assert error.value.hint == "qis-gateway nodes lists them"
        assert not isinstance(error.value, NotRunning)


async def test_a_bug_of_the_daemon_stays_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ControlServer(tmp_path, HANDLERS):
        with pytest.raises(QisError, match="internal error") as error:
            await ask(tmp_path, "fail")
    assert "secret detail" not in str(error.value)
    assert "secret detail" in caplog.text


async def test_unknown_verb(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, HANDLERS):
        with pytest.raises(QisError, match="does not know 'dance'"):
            await ask(tmp_path, "dance")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b'{"verb": 1}\n',
        b'{"verb": "echo", "args": []}\n',
        b"[" * 5000 + b"\n",
        b"\xff\n",
    ],
)
async def test_garbage_is_refused_and_the_connection_goes_on(tmp_path: Path, line: bytes) -> None:
    async with ControlServer(tmp_path, HANDLERS):
        bad, good = await raw(tmp_path, line, b'{"verb": "echo"}\n')
        assert json.loads(bad)["ok"] is False
        assert json.loads(good)["ok"] is True


async def test_a_request_without_end_is_refused(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, HANDLERS):
        reader, writer = await asyncio.open_unix_connection(tmp_path / control.NAME)
        writer.write(b"x" * (control.MAX_REQUEST + 1))
        answer = await reader.readline()
        writer.close()
        assert json.loads(answer)["error"] == "the request is too long"
        assert (await ask(tmp_path, "echo"))["got"] == {}


async def test_many_clients_are_let_go_and_others_served(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, HANDLERS):
        writers = []
        for _ in range(control.MAX_CLIENTS + 4):
            _, writer = await asyncio.open_unix_connection(tmp_path / control.NAME)
            writers.append(writer)
        for writer in writers:
            writer.close()
            await writer.wait_closed()
        for _ in range(50):
            try:
                assert (await ask(tmp_path, "echo"))["got"] == {}
                break
            except QisError:
                await asyncio.sleep(0.02)
        else:
            pytest.fail("the server did not recover")


async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, HANDLERS) as server:
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


async def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    async with ControlServer(tmp_path, HANDLERS):
        with pytest.raises(QisError, match="another daemon runs") as error:
            await ControlServer(tmp_path, HANDLERS).start()
        assert str(os.getpid()) in str(error.value)
        assert (await ask(tmp_path, "echo"))["got"] == {}
    async with ControlServer(tmp_path, HANDLERS):
        assert (await ask(tmp_path, "echo"))["got"] == {}


async def test_to_be_looked_at_does_not_keep_a_daemon_from_starting(tmp_path: Path) -> None:
    (tmp_path / control.LOCK).touch()
    handle = os.open(tmp_path / control.LOCK, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # as is_running does, for a moment
    asyncio.get_running_loop().call_later(0.03, os.close, handle)
    async with ControlServer(tmp_path, HANDLERS):
        assert is_running(tmp_path)


async def test_a_socket_left_by_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path\n"
        "from qis_edge.control import ControlServer\n"
        "async def main():\n"
        "    await ControlServer(Path(sys.argv[1]), {}).start()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, tmp_path)
    assert await process.wait() == -9
    assert (tmp_path / control.NAME).exists()
    assert not is_running(tmp_path)
    with pytest.raises(NotRunning):
        await ask(tmp_path, "echo")
    async with ControlServer(tmp_path, HANDLERS):
        assert is_running(tmp_path)
        assert (await ask(tmp_path, "echo"))["got"] == {}


async def test_what_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / control.NAME).write_text("precious")
    with pytest.raises(QisError, match="is no socket"):
        await ControlServer(tmp_path, HANDLERS).start()
    assert (tmp_path / control.NAME).read_text() == "precious"


async def test_closing_takes_the_socket_away_and_drops_clients(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def wait(_: Mapping[str, Any]) -> Any:
        asked.set()
        await asyncio.Event().wait()

    server = ControlServer(tmp_path, {"hang": wait})
    await server.start()
    waiting = asyncio.create_task(ask(tmp_path, "hang"))
    await asked.wait()
    await server.close()
    await server.close()
    with pytest.raises(QisError, match="went away"):
        await waiting
    assert not server.path.exists()
    assert not is_running(tmp_path)


async def test_a_folder_with_a_long_path(tmp_path: Path) -> None:
    state = tmp_path / ("d" * 120) / ("e" * 120)
    state.mkdir(parents=True)
    async with ControlServer(state, HANDLERS):
        assert (await ask(state, "echo"))["got"] == {}
    with pytest.raises(NotRunning):
        await ask(state, "echo")


async def test_a_missing_state_folder(tmp_path: Path) -> None:
    with pytest.raises(QisError, match="cannot listen"):
        await ControlServer(tmp_path / "none", HANDLERS).start()


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="not running") as error:
        request(tmp_path, "status", start="qis-gateway run")
    assert error.value.hint == "start it with: qis-gateway run"
    assert not is_running(tmp_path)


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\n", b"[1]\n", b'{"ok": true}\n', b"[" * 5000 + b"\n"]
)
async def test_a_daemon_that_answers_nonsense(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / control.NAME):
        with pytest.raises(QisError, match="went away"):
            await ask(tmp_path, "echo")


def test_a_daemon_that_never_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / control.NAME))
        listening.listen(1)
        with pytest.raises(QisError, match=r"within 0.05 s"):
            request(tmp_path, "status", timeout=0.05)
