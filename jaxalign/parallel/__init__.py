"""Meshes and rules, accelerators, processes, preemption."""
