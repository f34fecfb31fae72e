"""Weights that stay made to do the work of those that went, in closed form, from unlabelled images."""
