"""What is on disk of a model, or of an adapter."""
