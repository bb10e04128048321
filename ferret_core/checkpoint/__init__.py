"""Checkpoints as files: read, converted, put together, compared. No code in one is ever run."""
