"""Where policy is written, signed, published and served."""
