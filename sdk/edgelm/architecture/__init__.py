"""What follows from a ModelConfig: a checkpoint's tensors, position tables, and how each weight is stored."""
