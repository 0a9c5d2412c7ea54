"""Stores: what a node keeps on disk."""
