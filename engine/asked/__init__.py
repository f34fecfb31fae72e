"""What a run is asked: settings, targets, which groups, the recipe; and the command that repeats it."""
