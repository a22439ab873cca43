"""Answers of a given form: constraints, and calls of tools."""
