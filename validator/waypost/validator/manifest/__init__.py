"""What is served now, and what is on trial? A verified manifest made ready."""
