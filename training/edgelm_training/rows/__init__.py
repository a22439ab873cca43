"""Rows of tokens, by their number."""
