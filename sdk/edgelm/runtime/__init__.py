"""A decoder's graph in ONNX Runtime, from its inputs to its providers."""
