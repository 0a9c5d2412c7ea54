"""The base station: intake, spool, fleet, routing layer, downlink."""
