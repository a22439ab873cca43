"""The commands of the training."""
