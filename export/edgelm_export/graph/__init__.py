"""An ONNX graph, node by node, and the file of its weights."""
