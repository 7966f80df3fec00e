"""What a solver passes from step to step, so that another process can go on from the end of any."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

KEYS = 624  # integers in the state of MT19937


class Point(NamedTuple):
    """Parameters with the objective and its gradient there."""

    parameters: Array
    value: float
    gradient: Array


class Draws(NamedTuple):
    """The state of a RandomState of MT19937, for the integers that it draws."""

    keys: tuple[int, ...]
    position: int

    @classmethod
    def of(cls, random: np.random.RandomState) -> Draws:
        """The present state."""
        state: Any = random.get_state(legacy=False)
        return cls(tuple(state["state"]["key"].tolist()), state["state"]["pos"])

    def restore(self, random: np.random.RandomState) -> None:
        """Make ``random`` draw what it drew from this state on; ValueError if the state is none."""
        keys = self.keys
        if len(keys) != KEYS or not 0 <= min(keys) <= max(keys) < 1 << 32 or not 0 <= self.position <= KEYS:
            raise ValueError(
                f"the state of a generator must be {KEYS} integers of 32 bits, and a place in them"
            )
        random.set_state(("MT19937", np.array(keys, np.uint32), self.position, 0, 0.0))


class State(Protocol):
    """A NamedTuple of arrays (P,), numbers, tuples of either, and such NamedTuples; never written to."""

    @property
    def point(self) -> Point:
        """Where the step ended."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether the point was evaluated with float64 products, not by `Objective.rounded`."""
        ...

    @property
    def draws(self) -> Draws:
        """The state of the generator of all that is drawn, before what is first drawn to go on from here."""
        ...


class Counts(NamedTuple):
    """The state of `Progress`."""

    steps: int = 0
    gap: float = np.inf  # at the last point evaluated; without a certificate the expected relative decrease
    within_reach: float = np.inf  # `Certificate.within_reach`
    lower: float = 0.0  # `Certificate.lower`, the bound on the optimum
    separated: bool = False  # whether the classes are separable, so that there is no optimum


class Snapshot(NamedTuple):
    """A minimisation at the end of a step: all that it needs to go on, but the objective and tolerance."""

    solver: str
    start_value: float  # of the objective, nats
    counts: Counts
    state: State
