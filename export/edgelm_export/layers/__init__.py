"""The parts of a layer in a graph: the twins of those in PyTorch."""
