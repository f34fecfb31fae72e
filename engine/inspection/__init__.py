"""What could be pruned, before anything is."""
