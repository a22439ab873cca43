"""The parts of a Transformer's layer."""
