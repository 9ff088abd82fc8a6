"""Pure functions from annotated candidates to records."""
