"""Sensor drivers that come along."""
