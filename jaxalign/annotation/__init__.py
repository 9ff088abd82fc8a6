"""Assigns numbers to responses: judges, reward models, stored scores and advantages."""
