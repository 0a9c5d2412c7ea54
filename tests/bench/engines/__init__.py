"""Raw clients of routing engines, to measure the engines against (``tests/bench/routing.py``)."""
