"""State, step, loop, optimizers, partitioning, checkpoints and metrics."""
