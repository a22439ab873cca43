"""A package, so that fixtures can be of this folder."""
