"""Links: the ways to the other side."""
