"""From logits to an answer: the loop over token ids, sampling, search, and tokens guessed ahead."""
