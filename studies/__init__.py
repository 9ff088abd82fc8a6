"""The experiments behind ``docs/results``: each is one command that can be stopped and resumed."""
