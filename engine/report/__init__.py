"""A run, a comparison, a sweep or a study on one page."""
