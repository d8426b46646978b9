"""How hard is a text, what is it about, how sure does it sound? Pure arithmetic."""
