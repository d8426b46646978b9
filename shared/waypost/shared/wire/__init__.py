"""Which headers do the parts exchange? The Waypost headers and the trace context."""
