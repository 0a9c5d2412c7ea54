"""Known vulnerabilities of what is installed beside this interpreter: ``make audit``.

pip-audit asks an advisory service about each package and its version: OSV, or else the package
index. Exit code 1 where a vulnerability is known. Without a network, or where the index at hand has
no advisories, nothing can be said: that is told, loudly, and is no failure. (pip-audit by itself
says "no known vulnerabilities" in the second case, having looked at none.)

``QIS_OSV_URL`` names another service that speaks as OSV does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

#: Advisories that do not concern us, by id, each with the reason. Take out what is fixed.
ACCEPTED: dict[str, str] = {}
#: Seconds for one service to answer about everything.
PATIENCE = 240


class Answer(NamedTuple):
    """What a service knows: of so many packages, these are vulnerable; of those nothing."""

    audited: int
    vulnerable: list[str]
    accepted: list[str]
    unknown: list[str]


def ask(*service: str) -> Answer | str:
    """What a service says, or why it says nothing."""
    command = [
        *(sys.executable, "-m", "pip_audit", "--format=json", "--skip-editable"),
        *("--progress-spinner=off", "--timeout=10", "--desc=off", "--aliases=on"),
        *service,
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {PATIENCE} s"
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:300]
    return judge(found)


def judge(found: list[dict[str, Any]]) -> Answer | str:
    """Sort what pip-audit says of each package; why there is nothing, if so."""
    asked = [one for one in found if "skip_reason" not in one]
    unknown = [
        one["name"]
        for one in found
        if "skip_reason" in one and "editable" not in one["skip_reason"]
    ]
    if not asked:
        return "it has no advisories of any package"
    vulnerable, accepted = [], []
    for one in asked:
        for flaw in one["vulns"]:
            names = {flaw["id"], *flaw.get("aliases", ())}
            reason = next((ACCEPTED[name] for name in names if name in ACCEPTED), None)
            fixed = ", ".join(flaw["fix_versions"]) or "none yet"
            text = f"{one['name']} {one['version']}: {flaw['id']} (fixed in: {fixed})"
            if reason is None:
                vulnerable.append(text)
            else:
                accepted.append(f"{text}: accepted, {reason}")
    return Answer(len(asked), vulnerable, accepted, unknown)


def main() -> int:
    """The exit code."""
    url = os.environ.get("QIS_OSV_URL")
    osv = ("--vulnerability-service=osv", *([f"--osv-url={url}"] if url else []))
    services = {"OSV": osv} if url else {"OSV": osv, "the index": ("-s", "pypi")}
    reasons = []
    for name, service in services.items():
        answer = ask(*service)
        if isinstance(answer, str):
            reasons.append(f"  {name}: {answer}")
            continue
        for line in (*answer.accepted, *answer.vulnerable):
            print(line)
        if answer.unknown:
            print(f"nothing is known of: {', '.join(sorted(answer.unknown))}")
        print(f"audit: {answer.audited} packages, {len(answer.vulnerable)} known vulnerabilities")
        return 1 if answer.vulnerable else 0
    print("audit: NOTHING WAS AUDITED, for no advisory service answered:")
    print("\n".join(reasons))
    return 0


if __name__ == "__main__":
    sys.exit(main())
