"""Quantization: how each tensor is stored, by the schemes and recipes of edgelm/architecture/."""
