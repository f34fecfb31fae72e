"""One run: the job, its rehearsal, the search loop."""
