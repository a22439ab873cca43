"""Tokenizers of every kind, written as tokenizer.json."""
