"""How long a training takes until its first step, by parts."""

import time


class Startup:
    """A clock that is read at the end of each part of a start.

    Attributes:
        parts: Seconds by part, in order.
    """

    def __init__(self):
        self.parts: dict[str, float] = {}
        self._since = time.monotonic()

    def done(self, part: str) -> None:
        """Takes note of the part that began when the one before was done."""
        now = time.monotonic()
        self.parts[part], self._since = now - self._since, now

    def __str__(self):
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())
        return f"started in {sum(self.parts.values()):.1f} s: {parts}"
