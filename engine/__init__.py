"""A run, from model to result: what a user calls. Knows `search`, `metrics` and `backends`, which do not know each other."""
