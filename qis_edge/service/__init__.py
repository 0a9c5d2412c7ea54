"""Running as a service of systemd: what the daemon tells it, and the units it is given.

:mod:`.notify` speaks the protocol of sd_notify(3). :mod:`.supervise` feeds the watchdog by
what the daemon gets done. :mod:`.install` puts units in place and takes them away.
"""
