"""Pure functions that turn annotated candidates into records."""
