"""Targets on latency: measuring, predicting, and holding the result to the target."""
