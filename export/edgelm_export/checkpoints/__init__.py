"""A checkpoint, whatever it is on disk: its config, its tensors, its text files."""
