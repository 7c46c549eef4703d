"""Times that users write, such as 10m."""

import re

DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as 90s, 10m or 1h30m. Raises ValueError otherwise."""
    match = DURATION.fullmatch(text.strip().lower())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise ValueError(f"time must be like 90s, 10m or 1h30m and above 0, not {text!r}")
    return float(total)
