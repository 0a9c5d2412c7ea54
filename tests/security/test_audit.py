"""The audit fails for a known vulnerability and for nothing else: the real tool, our advisories."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.mosquitto import free_port

ROOT = Path(__file__).parents[2]
FLAW = {
    "schema_version": "1.6.0",
    "id": "OSV-2026-1",
    "summary": "everything",
    "affected": [
        {
            "package": {"name": "cbor2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}],
        }
    ],
}


@contextmanager
def advisories(answer: Callable[[str], dict[str, Any]]) -> Iterator[str]:
    """A service that answers about a package as ``answer`` says; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answer(asked["package"]["name"])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def audit(url: str) -> tuple[int, str]:
    """Exit code and output."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "audit.py")],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "QIS_OSV_URL": url},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def tool() -> None:
    pytest.importorskip("pip_audit", reason="needs: pip-audit (pip install pip-audit)")


def test_a_known_vulnerability_fails_the_audit() -> None:
    with advisories(lambda name: {"vulns": [FLAW]} if name == "cbor2" else {}) as url:
        code, said = audit(url)
    assert code == 1
    assert "OSV-2026-1 (fixed in: 99)" in said
    assert "1 known vulnerabilities" in said


def test_without_one_it_passes_and_says_how_many_it_looked_at() -> None:
    with advisories(lambda name: {}) as url:
        code, said = audit(url)
    assert code == 0
    assert "NOTHING" not in said
    assert "audit: " in said
    assert int(said.split("audit: ")[1].split()[0]) > 30


def test_a_service_that_is_not_reached_fails_nothing_and_is_told() -> None:
    code, said = audit(f"http://127.0.0.1:{free_port()}/v1/query")
    assert code == 0
    assert "NOTHING WAS AUDITED" in said


def test_an_index_without_advisories_is_not_taken_for_good_news() -> None:
    found = [{"name": "cbor2", "skip_reason": "Dependency not found on the index: cbor2 (6.2)"}]
    said = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import json, sys, audit; print(audit.judge(json.load(sys.stdin)))",
        ],
        cwd=ROOT / "tools",
        input=json.dumps(found),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "no advisories" in said
