"""What a model can be read from: Hugging Face folders, GGUF files and packages."""
