"""What a policy means for every request there can be: findings, proofs, differences."""
