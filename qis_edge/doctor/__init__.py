"""What may be wrong with a machine and its place in the fleet, found before it costs data.

Each check gives :class:`~qis_edge.doctor.findings.Finding`s: a code that stays, how bad it is,
what was found and what to do. What a check looks at is passed in (folders of ``/proc`` and
``/sys``, times, numbers), so that each is tested with what is wrong. ``qis-edge doctor`` and
``qis-gateway doctor`` put them together.
"""
