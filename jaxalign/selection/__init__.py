"""Pure functions that turn annotated candidates into records."""

# The imports register the selectors.
from jaxalign.selection import (  # noqa: F401
    budget,
    joint_pairs,
    low_loss_uncertain,
    rated,
    routed,
    scored,
    self_judged,
    similarity,
)
