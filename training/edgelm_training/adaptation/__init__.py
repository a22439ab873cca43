"""What a recipe puts into a model: LoRA, and the grids of quantization."""
