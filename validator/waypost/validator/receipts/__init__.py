"""Proof of what was decided: a signed receipt per answer, and a log that cannot be rewritten."""
