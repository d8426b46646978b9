"""A week or a month in plain English, for whoever pays: spent, saved, overridden, refused."""
