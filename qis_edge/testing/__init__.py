"""What implementers of the interfaces test with: conformance suites and doubles.

They ship in the wheel. The suites need pytest and pytest-asyncio, the doubles nothing.
"""

from __future__ import annotations

import sys

if "pytest" in sys.modules:  # under pytest, let the suites' asserts explain themselves
    import pytest

    pytest.register_assert_rewrite("qis_edge.testing.links")
