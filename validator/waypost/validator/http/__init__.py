"""How do bytes travel? The client, the server's protocol, event streams, problems."""
