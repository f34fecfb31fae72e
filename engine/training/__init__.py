"""The built-in trainer, and fine-tuning by it or by the user's own function."""
