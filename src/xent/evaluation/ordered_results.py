"""Results of several threads in the order of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from typing import Any

AHEAD = 16  # results that may wait for an earlier one


class OrderedResults:
    """Passes results of threads to ``consume`` in the order of their numbers, with a bounded buffer."""

    def __init__(self, consume: Callable[[Any], None]) -> None:
        self.consume = consume
        self.changed = Condition()
        self.early: dict[int, Any] = {}
        self.following = 0
        self.ended = False

    def put(self, index: int, result: Any) -> bool:
        """Add result ``index``; wait while it is `AHEAD` of the next one. Returns False if work has ended.

        A result that is an exception is raised when its turn comes, and ends the work.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.ended or index < self.following + AHEAD)
            try:
                self.early[index] = result
                while self.following in self.early and not self.ended:
                    result = self.early.pop(self.following)
                    if isinstance(result, Exception):
                        raise result
                    self.consume(result)
                    self.following += 1
            except BaseException:
                self.ended = True
                raise
            finally:
                self.changed.notify_all()
            return not self.ended

    def end(self) -> None:
        """End the work of all threads."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
