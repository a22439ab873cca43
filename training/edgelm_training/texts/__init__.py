"""From texts to shards of token ids."""
