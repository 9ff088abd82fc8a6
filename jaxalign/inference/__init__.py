"""From rows of text to sampled, greedy or beam-searched responses."""
