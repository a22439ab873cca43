"""From conversations to token ids, and which of them are learned."""
