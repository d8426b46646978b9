"""What a policy would do: with requests somebody thought of, and with those there were."""
