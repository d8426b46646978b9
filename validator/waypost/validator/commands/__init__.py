"""What can an operator ask at a terminal? One module per command."""
