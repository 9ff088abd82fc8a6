"""Flax networks: T5 policies, value networks, scoring of responses, decoding.

Only jax, flax and numpy are imported here, so that the training core runs on a machine without TensorFlow.
"""
