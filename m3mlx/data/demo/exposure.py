"""Exposure times for the cameras of Wrenmoor Observatory."""

# Seconds that a star of magnitude 10 needs at the big telescope, measured by Jonty Farrow.
SECONDS_AT_TEN = 8.0

# Longer than this, and the drive lets the stars become eggs.
LONGEST_SECONDS = 240.0


def exposure_seconds(magnitude: float, moonlit: bool = False) -> float:
    """Return how long to expose for a star of this magnitude.

    Each magnitude is 2.5 times fainter than the one before. When the Moon is up the sky is
    bright, so we expose for 60 percent of the time and stack more pictures instead.
    """
    seconds = SECONDS_AT_TEN * 2.5 ** (magnitude - 10)
    if moonlit:
        seconds *= 0.6
    return min(seconds, LONGEST_SECONDS)


def pictures_needed(magnitude: float, moonlit: bool = False) -> int:
    """Return how many pictures to stack: Thea's rule is five, and twelve in moonlight."""
    if exposure_seconds(magnitude, moonlit) == LONGEST_SECONDS:
        return 20
    return 12 if moonlit else 5
