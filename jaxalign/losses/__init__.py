"""The mathematics of every method, as pure functions on arrays.

Every function takes per-response quantities of shape ``[examples, responses]`` (per-token ones where the method is token-level by
nature), computes in float32 for every input dtype, and returns losses of the same shape: masking, summing and averaging belong to
the objective. Quantities that a method holds constant are wrapped in ``stop_gradient`` here, so a caller cannot forget it.
"""
