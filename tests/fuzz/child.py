"""One target under atheris, in a process of its own: ``python -m tests.fuzz.child TARGET …``.

What follows the target are libFuzzer's own arguments.
"""

from __future__ import annotations

import importlib
import shlex
import sys

import atheris


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    with atheris.instrument_imports(include=["qis_edge", "gateway"]):
        targets = importlib.import_module("tests.fuzz.targets")
    name, *arguments = sys.argv[1:]
    # To merge, libFuzzer starts itself: by this, through a shell.
    itself = shlex.join([sys.executable, "-m", "tests.fuzz.child", name])
    atheris.Setup([itself, *arguments], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
