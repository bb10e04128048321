"""Training: configuration and plan, tasks, strategies, checkpoints, the loop."""
