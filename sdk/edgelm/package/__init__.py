"""A model package, or an adapter beside it: what is in the folder, and what is checked before any of it runs."""
