"""Training: configuration, samples, tasks, optimiser, loop."""
