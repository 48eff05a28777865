"""deltaw."""
