"""Adapters, exported beside a package."""
