"""What one rendering of an untrusted template may spend: steps, CPU time, and the size of any value."""

import time
from typing import Any

from adapters.errors import TemplateError

MAX_STEPS = 50_000  # loop turns and operations of one rendering
MAX_SECONDS = 0.25  # CPU time of one rendering
MAX_VALUE = 65_536  # characters and elements of one value, beyond four times the input's
_MAX_DEPTH = 8


class Budget:
    """What one rendering may still spend."""

    __slots__ = ("_deadline", "_steps", "limit")

    def __init__(self, input_size: int) -> None:
        self.limit = MAX_VALUE + 4 * input_size
        self._steps = MAX_STEPS
        self._deadline = time.thread_time() + MAX_SECONDS

    def step(self) -> None:
        """Take one step."""
        self._steps -= 1
        if self._steps < 0:
            raise TemplateError(
                f"the prompt template takes more than {MAX_STEPS} steps: shorten its loops", key="template"
            )
        if time.thread_time() > self._deadline:
            raise TemplateError(f"the prompt template takes more than {MAX_SECONDS} s: simplify it", key="template")

    def room_for(self, size: int) -> None:
        """Refuse a value of that size, before it is made."""
        if size > self.limit:
            message = f"the prompt template makes a value of more than {self.limit} characters: build smaller ones"
            raise TemplateError(message, key="template")

    def made(self, value: Any) -> Any:
        """Take a step for a new value, and measure it with all its parts."""
        self.step()
        self.room_for(size_of(value, self.limit))
        return value


def size_of(value: Any, limit: int, depth: int = 0) -> int:
    """Characters and elements of a value with all its parts; counting stops beyond ``limit``."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise TemplateError("the prompt template makes a number beyond 64 bits", key="template")
    if not isinstance(value, list | tuple | dict):
        return 1
    if depth == _MAX_DEPTH:
        raise TemplateError(f"the prompt template nests lists deeper than {_MAX_DEPTH}", key="template")
    parts = (part for pair in value.items() for part in pair) if isinstance(value, dict) else value
    total = 1
    for part in parts:
        total += size_of(part, limit - total, depth + 1)
        if total > limit:  # a list that holds itself twice, again and again, grows exponentially: stop walking
            break
    return total
