"""Which model may serve a request, and why? Pure: no clock, no I/O, no randomness."""
