"""A model layer by layer in numpy: what each export is checked against."""
