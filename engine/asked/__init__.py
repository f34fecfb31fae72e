"""The options of a run: settings, targets, selection of groups, recipe; and the command that repeats a run."""
