"""The validator: checks every request against the signed manifest, pays for it, forwards it."""
