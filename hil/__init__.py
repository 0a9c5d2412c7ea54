"""Hardware in the loop: one suite of tests for real radios and lines, or emulated ones."""
