"""The runtime of a field node."""
