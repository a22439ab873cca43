"""Worker processes: one runtime each, with its model loaded, driven over a pipe."""
