"""What client, edge and validator share: contracts, the decision engine, manifest trust."""
