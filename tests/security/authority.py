"""An authority and its certificates, made by the very commands of docs/tls.md."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mosquitto import Mosquitto

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "tls.md").read_text()


def commands(title: str) -> str:
    """The shell commands under a heading of the page."""
    section = re.split(r"\n## ", PAGE.split(f"\n## {title}\n", 1)[1])[0]
    return "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))


class Authority:
    """A folder in which the page's commands were typed; the broker is ``localhost``.

    :param validity: days of the clients' certificates, in the place of the page's.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs: openssl")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca = folder / "qis-ca.pem"
        self.run(commands("The authority"))
        broker = commands("The broker")
        assert "BROKER=broker.example\n" in broker
        self.run(
            re.match(r"EC=.*\n", commands("The authority"))[0]  # type: ignore[index] # it is there
            + broker.replace("BROKER=broker.example\n", "BROKER=localhost\n")
        )

    def node(self, kid: bytes, *, change: tuple[str, str] = ("", "")) -> tuple[Path, Path]:
        """Certificate and key of a node.

        :param change: a piece of the commands, and what is typed in its place.
        """
        typed = commands("Each node")
        assert "KID=0011223344556677\n" in typed
        typed = typed.replace("KID=0011223344556677\n", f"KID={kid.hex()}\n")
        return self._client(typed, "node", kid.hex(), change)

    def gateway(self) -> tuple[Path, Path]:
        """Certificate and key of a gateway."""
        return self._client(commands("Each gateway"), "gateway", "gateway", ("", ""))

    def _client(
        self, typed: str, stem: str, name: str, change: tuple[str, str]
    ) -> tuple[Path, Path]:
        assert change[0] in typed
        self.run("printf 'extendedKeyUsage = clientAuth\\n' >client.ext\n")
        self.run(typed.replace(*change) if change[0] else typed)
        own = self.folder / name
        own.mkdir(exist_ok=True)
        found = []
        for file in (f"{stem}.pem", f"{stem}-key.pem"):
            found.append(own / file)
            (self.folder / file).rename(own / file)
        return found[0], found[1]

    def run(self, typed: str) -> str:
        """Type commands in the folder; what they print."""
        done = subprocess.run(
            ["sh", "-eu", "-c", typed],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def broker(self, folder: Path, acl: str = "") -> Mosquitto:
        """A broker with docs/mosquitto.conf and docs/mosquitto.acl, paths and port adapted.

        :param acl: what stands before the ACL's own lines.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rules = folder / "acl"
        rules.write_text(acl + (DOCS / "mosquitto.acl").read_text())
        rules.chmod(0o600)
        conf = (DOCS / "mosquitto.conf").read_text()
        for old, new in [
            ("/etc/mosquitto/certs/qis-ca.pem", self.ca),
            ("/etc/mosquitto/certs/broker.pem", self.folder / "broker.pem"),
            ("/etc/mosquitto/certs/broker-key.pem", self.folder / "broker-key.pem"),
            ("/etc/mosquitto/qis-edge.acl", rules),
        ]:
            assert old in conf
            conf = conf.replace(old, str(new))
        assert "listener 8883\n" in conf
        return Mosquitto(folder, conf.replace("listener 8883\n", "").splitlines())
