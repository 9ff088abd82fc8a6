"""Graphs of runs, samples, annotations and selections."""
