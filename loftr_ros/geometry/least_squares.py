"""Levenberg-Marquardt for all problems of geometry."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = TypeVar("State")

# A step that reduces the cost by less than this part is the last one.
_CONVERGED = 1e-4
_MOST_DAMPING = 1e2


class Problem(Protocol[State]):
    """A robust sum of squares over a state on a manifold."""

    def cost(self, state: State) -> float:
        """The cost to minimise."""

    def normal_equations(self, state: State) -> tuple[Array, Array]:
        """Hessian (n, n) and gradient (n,) of half the robust sum of squares, in the tangent space at the state."""

    def moved(self, state: State, step: Array) -> State:
        """The state after a step (n,) in its tangent space."""


def minimise(problem: Problem[State], state: State, iterations: int = 10) -> tuple[State, float]:
    """Levenberg-Marquardt with the diagonal of the Hessian as damping.

    Args:
        problem: to minimise.
        state: initial value.
        iterations: at most.

    Returns:
        The best state found, and its cost.
    """
    damping, cost = 1e-4, problem.cost(state)
    hessian, gradient = problem.normal_equations(state)
    for _ in range(iterations):
        damped = hessian + damping * np.diag(np.diag(hessian)) + 1e-12 * np.eye(len(gradient))
        step: Array = -np.asarray(np.linalg.solve(damped, gradient), np.float64)
        new_state = problem.moved(state, step)
        new_cost = problem.cost(new_state)
        if new_cost < cost:
            converged = cost - new_cost < _CONVERGED * cost
            state, cost = new_state, new_cost
            damping = max(damping / 10, 1e-9)
            if converged:
                break
            hessian, gradient = problem.normal_equations(state)
        else:
            damping *= 10
            if damping > _MOST_DAMPING:
                break
    return state, cost
