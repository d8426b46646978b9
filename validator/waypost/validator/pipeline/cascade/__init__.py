"""How sure an answer is, read from the answer itself."""
