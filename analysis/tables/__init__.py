"""Every tidy table of runs."""
