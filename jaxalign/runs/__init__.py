"""The run folder: its description of networks and vocabulary, its checkpoints, manifests and metrics."""
