"""The parts of a training run, and what it leaves on disk."""
