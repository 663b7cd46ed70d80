"""Asks for known holes in the libraries of virtual environments: ``audit.py PIP_AUDIT NEWEST_PYTHON LOWEST_PYTHON``.

A hole in the newest libraries is an error, as nothing but another library helps. One in the oldest is told: pip takes
a newer one, unless somebody asks for the oldest. Where the list of holes cannot be reached that is said, and is no
error.
"""

from __future__ import annotations

import json
import subprocess
import sys

SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def holes(pip_audit: str, python: str) -> list[str] | None:
    """The known holes, one a line; None where they cannot be had."""
    site = subprocess.run([python, "-c", SITE], check=True, capture_output=True, text=True).stdout.strip()
    asked = [pip_audit, "--format", "json", "--progress-spinner", "off", "--skip-editable", "--path", site]
    ended = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=600)
    try:
        told = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError):
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        sys.stdout.write(f"audit: the list of known holes cannot be had here: {lines[-1][:200]}\n")
        return None
    known = [each for each in told if "vulns" in each]
    if unknown := [each["name"] for each in told if "vulns" not in each]:
        sys.stdout.write(f"audit: PyPI tells nothing of {len(unknown)} of {len(told)} libraries: {unknown[0]}, …\n")
    if not known:
        return None
    return [
        f"{each['name']} {each['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version'}"
        for each in known
        for hole in each["vulns"]
    ]


def main(pip_audit: str, newest: str, lowest: str) -> int:
    """Tell of both; 1 where the newest libraries have a known hole."""
    found = holes(pip_audit, newest)
    if found is None:
        return 0
    for line in found:
        sys.stdout.write(f"newest: {line}\n")
    for line in holes(pip_audit, lowest) or ():
        sys.stdout.write(f"oldest: {line}\n")
    sys.stdout.write(f"audit: {len(found)} known holes in the newest libraries\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
