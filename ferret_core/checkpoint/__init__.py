"""Reading checkpoints that others wrote."""
