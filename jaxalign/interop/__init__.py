"""Reads and writes checkpoints of other systems."""
