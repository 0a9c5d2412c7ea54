"""Setting Meshtastic radios up for deployment, from one file, and checking that they are.

:mod:`~devices.radio_config.settings` declares the file, :mod:`~devices.radio_config.channel_key`
keeps the channel's secret, :mod:`~devices.radio_config.plan` compares a radio with the file and
says what to write; none of them needs a radio. :mod:`~devices.radio_config.library` talks to one
through the genuine Meshtastic library, :mod:`~devices.radio_config.configure` puts it together
and :mod:`~devices.radio_config.cli` is ``qis-edge radio configure`` and ``qis-edge radio list``.
"""
