"""The check of a package against its source."""
