"""How do providers say what they say? Each wire format, read and written."""
