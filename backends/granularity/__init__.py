"""One file for each granularity."""
