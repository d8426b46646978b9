"""Is routing worth it yet? Read from a usage export."""
