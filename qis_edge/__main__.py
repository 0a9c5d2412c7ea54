"""``python -m qis_edge`` is ``qis-edge``."""

from __future__ import annotations

import sys

from qis_edge.cli import main

sys.exit(main())
