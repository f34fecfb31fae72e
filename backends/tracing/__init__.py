"""Label tracing: what must be removed together, found in one forward pass."""
