"""The report of a run: what was done, which faults were injected, what was lost, how long recovery took."""

import json
from pathlib import Path
from typing import Any

_sections: dict[str, dict[str, Any]] = {}


def add(name: str, section: dict[str, Any]) -> None:
    """Take a test's account."""
    _sections[name] = section


def text() -> str:
    """All accounts as JSON, "" if there are none."""
    if not _sections:
        return ""
    faults: dict[str, int] = {}
    for section in _sections.values():
        for kind, count in section.get("faults", {}).items():
            faults[kind] = faults.get(kind, 0) + count
    whole = {
        "operations": sum(section.get("operations", 0) for section in _sections.values()),
        "faults": dict(sorted(faults.items())),
        "acknowledged_writes": sum(section.get("acknowledged_writes", 0) for section in _sections.values()),
        "lost": sum(section.get("lost", 0) for section in _sections.values()),
        "worst_recovery_s": max(section.get("worst_recovery_s", 0.0) for section in _sections.values()),
        "tests": _sections,
    }
    return json.dumps(whole, indent=2) + "\n"


def write(path: Path) -> None:
    """Write the accounts, if there are any."""
    if _sections:
        path.write_text(text())
