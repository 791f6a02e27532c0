"""`python -m modalign` is the command `modalign`."""

from __future__ import annotations

import sys

from modalign.cli import main

if __name__ == "__main__":
    sys.exit(main())
