"""QIS Edge."""
