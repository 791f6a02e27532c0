"""Speed, memory and indexes: one script after the other, as one table.

    python bench/run.py --data ../shared/data [--only step --only store ...] [--json]

Each script runs in a process of its own and says by --help what it takes. The exit status is 1
where a figure is not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from measuring import Figure, add_data, parser, print_figures

HERE = Path(__file__).resolve().parent
SCRIPTS = ("step", "losses", "maps", "store", "memory", "bits", "latency", "index")
READ_DATA = ("store", "bits")


def main() -> int:
    options = parser(__doc__)
    add_data(options)
    options.add_argument("--only", action="append", choices=SCRIPTS, help="may be given again")
    chosen = options.parse_args()
    figures = [figure for name in chosen.only or SCRIPTS for figure in run(name, chosen)]
    print_figures(f"Figures, {os.cpu_count()} cores", figures, chosen)
    return int(any(figure.reached is False for figure in figures))


def run(name: str, options: argparse.Namespace) -> list[Figure]:
    """Run one script and return its figures."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", "--seed", str(options.seed)]
    if name in READ_DATA:
        command += ["--data", str(options.data)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return [Figure(**figure) for figure in json.loads(ran.stdout)["figures"]]


if __name__ == "__main__":
    sys.exit(main())
