"""Charts as SVG, without a library for them."""
