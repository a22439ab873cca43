"""Matrices that arrive quantized, format by format."""
