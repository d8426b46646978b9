"""How does a policy become a signed, published tree? Keys, drafts, the repository."""
