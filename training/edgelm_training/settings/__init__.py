"""The settings of a run, and those that follow from its size."""
