"""Generates sampled, greedy or beam-searched responses to rows of text."""
