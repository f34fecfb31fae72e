"""Who scores: this process, several, or a Ray cluster."""
