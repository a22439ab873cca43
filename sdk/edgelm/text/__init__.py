"""Text to token ids and back: the tokenizer, the chat template, and what ends an answer."""
