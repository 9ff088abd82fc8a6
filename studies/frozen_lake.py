"""Frozen Lake, the 4x4 map without slipping, as tables: where every action leads, the best policies, and measures of a policy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# Start, frozen, hole, goal; as in gymnasium's FrozenLake-v1.
MAP = ("SFFF", "FHFH", "FFFH", "HFFG")
LEFT, DOWN, RIGHT, UP = range(4)
NUM_ACTIONS = 4
NUM_STATES = 16
DISCOUNT = 0.9
_MOVES = {LEFT: (0, -1), DOWN: (1, 0), RIGHT: (0, 1), UP: (-1, 0)}
_LETTERS = "".join(MAP)
# States in which an episode goes on.
LIVE = np.array([letter in "SF" for letter in _LETTERS])
GOAL = _LETTERS.index("G")


def next_states() -> Int[np.ndarray, "states actions"]:
    """Returns the state that every action leads to; walls stop, and holes and the goal are never left."""
    table = np.empty((NUM_STATES, NUM_ACTIONS), np.int32)
    for state in range(NUM_STATES):
        row, column = divmod(state, len(MAP))
        for action, (down, right) in _MOVES.items():
            moved = min(max(row + down, 0), len(MAP) - 1) * len(MAP) + min(
                max(column + right, 0), len(MAP) - 1
            )
            table[state, action] = moved if LIVE[state] else state
    return table


def optimal_policy() -> Float[np.ndarray, "states actions"]:
    """Returns the optimal probabilities of the actions by value iteration; equally good actions share them. Zero outside live states."""
    table = next_states()
    reward = (table == GOAL) & LIVE[:, None]
    values = np.zeros(NUM_STATES)
    for _ in range(100):
        returns = reward + DISCOUNT * values[table]
        values = np.where(LIVE, returns.max(axis=1), 0)
    best = np.isclose(returns, returns.max(axis=1, keepdims=True)) & LIVE[:, None]
    return best / np.maximum(best.sum(axis=1, keepdims=True), 1)


def transitions(
    policy: Float[np.ndarray, "*seeds states actions"],
) -> Float[np.ndarray, "*seeds states next"]:
    """Returns the probability of every next state under a policy."""
    leads_to = np.eye(NUM_STATES)[next_states()]
    return np.einsum("...sa,sat->...st", policy, leads_to)


def squared_error(
    policy: Float[np.ndarray, "*seeds states actions"],
) -> Float[np.ndarray, "*seeds states"]:
    """Returns the mean over actions of the squared difference from the optimal policy, for every state."""
    return np.square(policy - optimal_policy()).mean(axis=-1)


def success(policy: Float[np.ndarray, "*seeds states actions"]) -> Float[np.ndarray, "*seeds"]:
    """Returns the expected discounted reward of a policy, the mean over all live states as starts; 1 for reaching the goal."""
    matrix = transitions(policy)
    rewards = np.where(LIVE, matrix[..., GOAL], 0)
    inside = matrix * LIVE[:, None] * LIVE
    values = np.linalg.solve(np.eye(NUM_STATES) - DISCOUNT * inside, rewards[..., None])[..., 0]
    return values[..., LIVE].mean(axis=-1)
