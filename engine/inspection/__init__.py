"""Inspection: what could be pruned from a network."""
