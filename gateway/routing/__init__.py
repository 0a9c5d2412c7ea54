"""Routing engines: where packets live by fingerprint."""
