"""What keeps one failing provider from failing everybody."""
