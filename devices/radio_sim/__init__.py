"""Meshtastic radios in software, and the channel that they share.

:mod:`~devices.radio_sim.channel` and :mod:`~devices.radio_sim.radio` are an event simulation
without I/O; :mod:`~devices.radio_sim.ports` puts radios on ptys and TCP ports.
"""
