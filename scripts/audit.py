"""Look up every pinned package among the known vulnerabilities.

    python scripts/audit.py [-s osv] [...]

Asks pip-audit about ``constraints.txt`` as it stands: nothing is installed or resolved for it. Other arguments go to
pip-audit, such as ``--ignore-vuln ID``. Exit status 0: none is known. 1: some are. 2: the vulnerability database could
not be asked, so that nothing is known either way; a mirror of a package index often has none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
NONE_KNOWN, FOUND, NOT_ASKED = 0, 1, 2
PATIENCE_S = 900


def ask(arguments: list[str]) -> dict[str, Any] | None:
    """What pip-audit found, as JSON; ``None`` if it came to no end."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        found = json.loads(run.stdout)
    except subprocess.TimeoutExpired:
        print(f"pip-audit was not done after {PATIENCE_S} s", file=sys.stderr)
        return None
    except ValueError:  # it says so with status 1, the same as for a vulnerability that it found
        print("\n".join(run.stderr.strip().splitlines()[-3:]), file=sys.stderr)
        return None
    return found if isinstance(found, dict) and found.get("dependencies") else None


def tell(found: dict[str, Any] | None) -> int:
    """Print it for people; the exit status."""
    looked_up = [one for one in found["dependencies"] if "skip_reason" not in one] if found else []
    if found is None or not looked_up:
        print("NOT AUDITED: no vulnerability database could be asked. Run this where one can be reached.")
        return NOT_ASKED
    for one in looked_up:
        for vulnerability in one["vulns"]:
            names = ", ".join([vulnerability["id"], *vulnerability.get("aliases", [])])
            fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version yet"
            print(f"{one['name']} {one['version']}: {names}; fixed in {fixed}")
    for one in found["dependencies"]:
        if "skip_reason" in one:
            print(f"{one['name']}: not looked up, {one['skip_reason']}")
    vulnerable = sum(bool(one["vulns"]) for one in looked_up)
    print(f"{len(looked_up)} packages were looked up, {vulnerable} of them have known vulnerabilities.")
    return FOUND if vulnerable else NONE_KNOWN


if __name__ == "__main__":
    sys.exit(tell(ask(sys.argv[1:])))
