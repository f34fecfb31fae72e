"""A target on latency: measured, predicted, held."""
