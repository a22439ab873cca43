"""The Transformer in PyTorch: the model itself, and the oracle of everything that runs it elsewhere."""
