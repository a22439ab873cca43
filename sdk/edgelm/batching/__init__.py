"""Many requests on one model, computed together."""
