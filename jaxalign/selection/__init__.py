"""Pure functions that turn annotated candidates into records."""

# The imports register the selectors.
from jaxalign.selection import (  # noqa: F401
    budget,
    joint_pairs,
    rated,
    routed,
    scored,
    self_judged,
    similarity,
    uncertainty,
)
