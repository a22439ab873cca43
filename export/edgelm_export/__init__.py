"""Checkpoints in (Hugging Face folders, GGUF files), ONNX model packages out. Needs no PyTorch."""
