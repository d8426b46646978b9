"""What did people write? Policy and issuers, read from files and checked."""
