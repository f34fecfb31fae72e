"""The core of a run: the job, the search loop, the score of one network."""
