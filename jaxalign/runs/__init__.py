"""The run folder: what it says of networks and vocabulary, its checkpoints, manifests and metrics."""
