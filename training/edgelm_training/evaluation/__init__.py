"""What a model is worth, and what it does inside."""
