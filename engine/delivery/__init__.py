"""From the winner of a search to a finished run."""
