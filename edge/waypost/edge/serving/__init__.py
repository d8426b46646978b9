"""What does the edge answer over HTTP? The published tree, and decisions."""
