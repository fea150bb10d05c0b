"""What targets demand: data."""
