"""Real programs, run in CI."""
