"""Who is asking, and may this token be used here? Tokens, proofs, what counts once."""
