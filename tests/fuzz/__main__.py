"""``make fuzz``: every decoder under coverage-guided fuzzing, for a time; writes build/fuzz.json.

    python -m tests.fuzz [TARGET …]                 FUZZ_SECONDS=60 for each
    python -m tests.fuzz --replay TARGET FILE       run one input, without a fuzzer

It begins with the kept corpus and our own test vectors, and in the end prunes what it found to a
new corpus (``tests/fuzz/corpus``, to be committed). A finding ends its target, is left in
build/fuzz/TARGET, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz import corpus
from tests.fuzz.targets import LONGEST, TARGETS, USUALLY

BUILD = corpus.ROOT / "build"
FOLDER = BUILD / "fuzz"
#: Seconds after which one input is a hang, and MiB that a target may take.
HANG = 10
MEMORY = 2048


def main() -> int:
    """The exit code: 1 after a finding, 2 where there is no fuzzer."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Fuzz the decoders.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    given = parser.parse_args()
    if given.replay:
        target, file = given.replay
        TARGETS[target](Path(file).read_bytes())
        print("nothing is wrong with it")
        return 0
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if importlib.util.find_spec("atheris") is None:
        print("needs: atheris (pip install '.[fuzz]'; x86-64)", file=sys.stderr)
        return 2
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    results = {name: fuzz(name, seconds) for name in given.targets or TARGETS}
    findings = sum(one["crashes"] for one in results.values())
    executions = sum(one["executions"] for one in results.values())
    whole = {
        "seconds_each": seconds,
        "executions": executions,
        "crashes": findings,
        "targets": results,
    }
    (BUILD / "fuzz.json").write_text(json.dumps(whole, indent=2) + "\n")
    print(f"{executions} executions, {findings} findings; build/fuzz.json")
    return 1 if findings else 0


def fuzz(name: str, seconds: int) -> dict[str, Any]:
    """Fuzz one target; gives its figures."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    grown, pruned = folder / "corpus", folder / "pruned"
    for one in (grown, pruned):
        one.mkdir(parents=True)
    first = [*corpus.seeds(name), *corpus.kept(corpus.CORPUS, name)]
    for number, data in enumerate(dict.fromkeys(first)):
        (grown / f"seed-{number:04}").write_bytes(data)
    words = folder / "words"
    words.write_text("".join(f"{json.dumps(word)}\n" for word in corpus.words(name)))
    started = time.monotonic()
    said = _child(
        name,
        grown,
        *([f"-dict={words}"] if words.stat().st_size else []),
        f"-max_total_time={seconds}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
    )
    found = [path for path in folder.iterdir() if path.is_file() and path != words]
    figures = {
        "seconds": round(time.monotonic() - started, 1),
        "executions": _last(r"stat::number_of_executed_units: (\d+)", said)
        or _last(r"^#(\d+)\s", said),
        "edges": _last(r"cov: (\d+)", said),
        "features": _last(r"ft: (\d+)", said),
        "seeds": len(set(first)),
        "corpus": len(list(grown.iterdir())),
        "crashes": len(found),
    }
    if not figures["executions"]:
        print(said, file=sys.stderr)
        raise SystemExit(f"{name}: the fuzzer did not run: see above")
    if found:
        print(said[-4000:], file=sys.stderr)
        for path in found:
            print(f"again: python -m tests.fuzz --replay {name} {path}", file=sys.stderr)
    else:
        _child(name, pruned, grown, "-merge=1")
        figures["kept"] = corpus.keep(name, (path.read_bytes() for path in pruned.iterdir()))
    print(name, " ".join(f"{key}={value}" for key, value in figures.items()), flush=True)
    return figures


def _child(name: str, *arguments: str | Path) -> str:
    """Run libFuzzer; gives what it says."""
    longest = LONGEST.get(name, USUALLY)
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "tests.fuzz.child", name),
            *map(str, arguments),
            f"-max_len={longest}",
            f"-timeout={HANG}",
            f"-rss_limit_mb={MEMORY}",
        ],
        cwd=corpus.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text, re.MULTILINE)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
