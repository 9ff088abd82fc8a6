"""Objectives: which networks a method trains, which batch fields it reads, and how the two meet a loss."""
