"""Which tokens hold? Issuing them, and identity providers' keys."""
