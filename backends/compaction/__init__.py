"""Channels that zero weights have made useless leave the network."""
