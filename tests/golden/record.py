"""Make the golden runs anew and print what changed: `make golden`, or python tests/golden/record.py."""

import json
import sys
from pathlib import Path
from typing import Any

from golden_cases import cases, machine, run

FILE = Path(__file__).with_name("golden.json")


def recorded() -> dict[str, Any]:
    """The record: the machine that it was made on, and the runs by name."""
    if not FILE.exists():
        return {"machine": None, "runs": {}}
    return json.loads(FILE.read_text())


def main() -> int:
    """Run all cases, print a line for each that differs, and write the record. Returns the number that
    differ."""
    before, found = recorded(), {case.name: run(case) for case in cases()}
    changed = [name for name in found if found[name] != before["runs"].get(name)]
    for name in changed:
        old = before["runs"].get(name)
        step = (
            "new" if old is None else f"first differs at step {_first(old['losses'], found[name]['losses'])}"
        )
        print(f"{name}: {step}")
    gone = sorted(before["runs"].keys() - found.keys())
    print(
        f"{len(changed)} of {len(found)} runs changed; gone: {', '.join(gone) or 'none'}; machine {machine()}"
    )
    runs = {"machine": machine(), "runs": found}
    FILE.write_text(json.dumps(runs, indent=0, separators=(",", ":")) + "\n")
    return len(changed)


def _first(old: list[str], new: list[str]) -> int:
    """The first step (from 1) whose loss differs; one more than there are where only the weights do."""
    pairs = zip(old, new, strict=True)
    return next((step for step, (a, b) in enumerate(pairs, 1) if a != b), len(old) + 1)


if __name__ == "__main__":
    main()
    sys.exit(0)
