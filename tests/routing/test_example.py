"""The engine that ``docs/routing/README.md`` shows: registered and held to the suite, as shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from gateway.routing import schemes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/routing/README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def installed(folder: Path) -> Path:
    """A package with the page's engine and entry point, as pip leaves one."""
    for block in blocks("python"):
        name = block.splitlines()[0].removeprefix("# ")
        assert name.endswith("lines_engine.py")
        (folder / name).write_text(block)
    (project,) = (t for t in map(tomllib.loads, blocks("toml")) if "project" in t)
    points = project["project"]["entry-points"]["qis_edge.routing"]
    about = folder / "lines_engine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lines-engine\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[qis_edge.routing]\n{lines}")
    return folder


def test_the_page_s_engine_passes_the_suite(tmp_path: Path) -> None:
    folder = installed(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"),
            *("-o", "asyncio_default_fixture_loop_scope=function"),
            *("--rootdir", str(folder), "-c", os.devnull, str(folder / "test_lines_engine.py")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 40
    assert "skipped" not in done.stdout


def test_every_engine_is_in_the_table() -> None:
    rows = "".join(line for line in PAGE.splitlines(keepends=True) if line.startswith("| `"))
    assert [scheme for scheme in schemes() if f"`{scheme}:" not in rows] == []
