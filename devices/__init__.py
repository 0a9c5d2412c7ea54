"""Sensor drivers and domain templates."""
