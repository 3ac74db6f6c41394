"""The time that training has taken."""

import time


class Clock:
    """Counts from its creation, plus the time of the processes that trained the run before.

    Args:
        device: ``cpu`` counts processor time, so that other work on the machine is not counted; an accelerator wall time.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = (0.0, 0.0)
        self._began = self._now()

    def spent(self) -> tuple[float, float]:
        """Seconds of training, and wall seconds."""
        seconds, wall = self._now()
        return self.before[0] + seconds - self._began[0], self.before[1] + wall - self._began[1]

    def _now(self) -> tuple[float, float]:
        wall = time.monotonic()
        return (time.process_time() if self.device == "cpu" else wall), wall
