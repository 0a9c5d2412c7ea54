"""The genuine Meshtastic library, kept on a short lead.

The library prints, starts threads that outlive its callers, waits for very long, ends the
process by ``SystemExit``, and logs keys when it is told to debug. So every call to it runs in a
thread of its own with a deadline, its output goes nowhere, and what it raises comes out as
:class:`~qis_edge.core.errors.LinkError`. It is imported here only, when it is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import io
import logging
import os
import stat
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from devices.radio_config.plan import Snapshot
from qis_edge.core.errors import LinkError
from qis_edge.links.meshtastic_wire import resolve, tcp_address

T = TypeVar("T")

_MESSAGES = ("lora", "device", "position", "bluetooth")


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits, seconds.

    :param pause: after each message that writes; the radio drops what comes faster.
    :param connect: to be told all by a radio. :param write: for all messages.
    :param restart: until a radio that was told to restart does so.
    :param back: until it answers again. :param retry: between two attempts.
    """

    pause: float = 0.5
    connect: float = 35.0
    write: float = 60.0
    restart: float = 25.0
    back: float = 60.0
    retry: float = 1.0

    def faster(self, rate: float) -> Timing:
        """For radios whose time runs ``rate`` times as fast."""
        return Timing(
            pause=self.pause / rate,
            connect=self.connect,
            write=self.write,
            restart=self.restart / rate,
            back=self.back / rate,
            retry=self.retry / rate,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that the library prints or logs is seen; its log may hold keys."""
    logger = logging.getLogger("meshtastic")
    before = logger.disabled, logger.propagate, logger.level
    logger.disabled, logger.propagate = True, False
    logger.setLevel(logging.CRITICAL + 1)  # its children ask for it
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logger.disabled, logger.propagate, level = before
        logger.setLevel(level)


class Link:
    """An open connection to one radio. Use it within :func:`quiet`.

    :param address: as for :func:`qis_edge.links.meshtastic_wire.connect`.
    """

    def __init__(self, address: str, interface: Any, timing: Timing) -> None:
        self.address = address
        self._interface = interface
        self._timing = timing
        self._first = interface.myInfo

    @classmethod
    def open(cls, address: str, timing: Timing) -> Link:
        """Connect, and have the radio tell all.

        :raises LinkError: there is no such radio, it is in use, does not answer, or the
            library is missing.
        """
        interface = _make(address)
        # Sessions are short, and the library's timer would keep the process alive.
        interface._startHeartbeat = lambda: None
        try:
            _within(timing.connect, interface.connect, f"{_shown(interface)} does not answer")
            if interface.myInfo is None or not interface.localNode.channels:
                raise LinkError(f"{_shown(interface)} does not speak as a Meshtastic radio does")
        except BaseException:
            _hang_up(interface)
            raise
        return cls(_shown(interface), interface, timing)

    def read(self) -> Snapshot:
        """What the radio said of itself when it was connected to."""
        interface, node = self._interface, self._interface.localNode
        user = (interface.getMyNodeInfo() or {}).get("user", {})
        config, metadata = node.localConfig, interface.metadata
        messages = {name: _copy(getattr(config, name)) for name in _MESSAGES}
        messages["telemetry"] = _copy(node.moduleConfig.telemetry)
        return Snapshot(
            number=int(interface.myInfo.my_node_num),
            firmware=str(metadata.firmware_version) if metadata is not None else "",
            reboots=int(interface.myInfo.reboot_count),
            name=str(user.get("longName", "")),
            short_name=str(user.get("shortName", "")),
            licensed=bool(user.get("isLicensed", False)),
            managed=bool(config.security.is_managed or config.device.is_managed),
            messages=messages,
            channels=[_copy(one) for one in node.channels],
        )

    def write(self, sections: Sequence[str], radio: Snapshot, index: int) -> None:
        """Write sections of ``radio`` in one transaction; the radio restarts after it.

        Ctrl-C stops it between two sections; what was written is committed all the same, for a
        radio in the middle of a transaction would show what it has not kept.

        :param index: of the channel.
        :raises LinkError: the radio was lost meanwhile.
        """
        stop = threading.Event()

        def transact() -> None:
            node, pause = self._interface.localNode, self._timing.pause
            node.ensureSessionKey()
            time.sleep(pause)
            node.beginSettingsTransaction()
            time.sleep(pause)
            for section in sections:
                if stop.is_set():
                    break
                self._alive()
                self._write(section, radio, index)
                time.sleep(pause)
            self._alive()
            node.commitSettingsTransaction()

        lost = f"{self.address} was lost while it was set up"
        _within(self._timing.write, transact, lost, stop)

    def _write(self, section: str, radio: Snapshot, index: int) -> None:
        node = self._interface.localNode
        if section == "owner":
            user = (self._interface.getMyNodeInfo() or {}).get("user", {})
            node.setOwner(
                radio.name,
                radio.short_name or None,
                is_licensed=radio.licensed,
                is_unmessagable=user.get("isUnmessagable"),
            )
        elif section == "channel":
            node.channels[index].CopyFrom(radio.channels[index])
            node.writeChannel(index)
        else:
            config = node.moduleConfig if section == "telemetry" else node.localConfig
            getattr(config, section).CopyFrom(radio.messages[section])
            node.writeConfig(section)

    def _alive(self) -> None:
        if not self._interface.isConnected.is_set():
            raise LinkError(
                f"{self.address} was lost while it was set up",
                hint="take the radio's power away for a moment, then run it again",
            )

    def restarted(self) -> bool:
        """Wait for the radio to restart; whether it was seen to."""
        interface, end = self._interface, time.monotonic() + self._timing.restart
        while time.monotonic() < end:
            if not interface.isConnected.is_set() or interface.myInfo is not self._first:
                return True
            time.sleep(min(0.1, self._timing.retry))
        return False

    def close(self) -> None:
        """Hang up. It waits a few seconds for the library, not longer."""
        _hang_up(self._interface)


def _make(address: str) -> Any:
    """The library's object, not connected yet."""
    try:
        from meshtastic.serial_interface import SerialInterface
        from meshtastic.tcp_interface import TCPInterface
    except ImportError as error:
        raise LinkError(
            f"setting radios up needs a package that is not installed ({error.name})",
            hint="pip install 'qis-edge[mesh]'",
        ) from None
    if address.startswith("tcp:"):
        host, port = tcp_address(address)
        return TCPInterface(host, portNumber=port, connectNow=False, noNodes=True)
    device = resolve(address)
    _check_port(device)
    return SerialInterface(device, connectNow=False, noNodes=True)


def _shown(interface: Any) -> str:
    if (host := getattr(interface, "hostname", None)) is not None:
        return f"tcp:{host}:{interface.portNumber}"
    return str(interface.devPath)


def _check_port(device: str) -> None:
    """Whether a serial port can be had. The library would disturb whoever uses it.

    :raises LinkError: it cannot.
    """
    try:
        port = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise LinkError(f"{device}: permission denied", hint=_join_group(device)) from None
    except FileNotFoundError:
        raise LinkError(
            f"there is no {device}", hint="qis-edge radio list shows what is plugged in"
        ) from None
    except OSError as error:
        raise LinkError(f"{device}: {error.strerror}") from None
    try:
        settings = termios.tcgetattr(port)
        fcntl.flock(port, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A radio that sees the line hang up when we close it would restart.
        settings[2] &= ~termios.HUPCL
        termios.tcsetattr(port, termios.TCSANOW, settings)
    except termios.error:
        raise LinkError(f"{device} is no serial port") from None
    except BlockingIOError:
        raise LinkError(
            f"{device} is in use by another program",
            hint="if that is a node or a gateway of ours, stop it while the radio is set up",
        ) from None
    finally:
        os.close(port)


def _join_group(device: str) -> str:
    try:
        found = os.stat(device)  # noqa: PTH116 - of the device alone
        group = grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        return "run it as a user who may use serial ports"
    if not found.st_mode & stat.S_IWGRP:
        return "run it as a user who may use it"
    return f"sudo usermod -aG {group} $USER, then log in again"


def _within(
    seconds: float, function: Callable[[], T], late: str, stop: threading.Event | None = None
) -> T:
    """Call something of the library's, for so long at most.

    :param late: what is wrong when it takes longer.
    :param stop: where it is given, Ctrl-C sets it and then waits for the function.
    :raises LinkError: it took longer, or whatever the library raised, in words.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()  # a thread whose join is interrupted may count as ended

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - SystemExit is one of its ways
            errors.append(error)
        done.set()

    threading.Thread(target=call, daemon=True, name="meshtastic").start()
    try:
        done.wait(seconds)
    except KeyboardInterrupt:
        if stop is not None:
            stop.set()
            done.wait(seconds)
        raise
    if results:
        return results[0]
    if not errors:
        raise LinkError(late)
    raise _in_words(errors[0], late) from None


def _in_words(error: BaseException, otherwise: str) -> LinkError:
    """What the library raised; of an unknown kind it may quote what it should not."""
    if isinstance(error, LinkError):
        return error
    if isinstance(error, OSError):  # pyserial's own errors among them
        if "exclusively lock" in str(error):
            return LinkError(f"{otherwise}: it is in use by another program")
        return LinkError(f"{otherwise}: {error.strerror or error}")
    if type(error).__name__ == "MeshInterfaceError":
        return LinkError(f"{otherwise}: {error}")
    return LinkError(f"{otherwise} (the Meshtastic library ended with {type(error).__name__})")


def _hang_up(interface: Any) -> None:
    with contextlib.suppress(LinkError):
        _within(5.0, interface.close, "")


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made
