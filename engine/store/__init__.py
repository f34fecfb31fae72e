"""The files of a run folder: writing them, checking them, reading them back."""
