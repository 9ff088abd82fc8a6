"""Records, tasks, vocabularies, the tokenised cache and the training pipeline."""
