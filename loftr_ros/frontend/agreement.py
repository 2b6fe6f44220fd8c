"""Trust in a sensor of motion by its agreement with the images."""

from __future__ import annotations

from enum import Enum


class SensorState(Enum):
    """State of a sensor of motion."""

    UNCHECKED = "it was not compared with matched motions yet"
    HEALTHY = "it agrees with matched motions"
    CONTRADICTS = "it contradicts matched motions"


class Agreement:
    """Counts comparisons of a sensor with the images: it is trusted, or called wrong, after enough of them in a row."""

    def __init__(self, agreeing: int, contradicting: int) -> None:
        """Begin without comparisons.

        Args:
            agreeing: comparisons in a row that must agree to trust it.
            contradicting: that must contradict to call it wrong.
        """
        self._agreeing, self._contradicting = agreeing, contradicting
        self._agreed = self._contradicted = 0
        self._refused_at = 0
        self.state = SensorState.UNCHECKED

    @property
    def is_healthy(self) -> bool:
        """Whether it may be used."""
        return self.state is SensorState.HEALTHY

    @property
    def is_contradicted(self) -> bool:
        """Whether the last comparison contradicted it."""
        return self._contradicted > 0

    def count(self, agrees: bool) -> None:
        """Count a comparison."""
        self._agreed, self._contradicted = (self._agreed + 1, 0) if agrees else (0, self._contradicted + 1)
        if self._contradicted >= self._contradicting:
            self.state = SensorState.CONTRADICTS
        elif self._agreed >= self._agreeing:
            self.state = SensorState.HEALTHY

    def refused(self, stamp_ns: int) -> None:
        """A pose of a frame that is good by itself was refused because it contradicts the sensor, which may be wrong.

        A frame counts once.
        """
        if stamp_ns != self._refused_at:
            self._refused_at = stamp_ns
            self.count(False)
