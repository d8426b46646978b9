"""What does a request say of itself? Its API, its size, what it needs."""
