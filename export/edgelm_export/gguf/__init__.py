"""GGUF files: their header, their tensors and their tokenizers."""
