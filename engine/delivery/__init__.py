"""The steps from the result of a search to a finished run."""
