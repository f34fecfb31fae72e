"""Workers that score and fine-tune: this process, several processes, or a Ray cluster."""
