"""What can a person ask at a terminal? One module per command."""
