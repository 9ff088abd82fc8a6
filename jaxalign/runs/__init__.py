"""Reads and writes run folders: the description of networks and vocabulary, checkpoints, manifests and metrics."""
