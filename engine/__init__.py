"""The functions that users call, from model to result.

Imports `search`, `metrics` and `backends`, which import neither each other nor `engine`.
"""
