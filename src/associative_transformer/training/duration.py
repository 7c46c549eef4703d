"""Times as users write them, such as 10m, and as they read them."""

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


def format_seconds(seconds: int | float) -> str:
    """Return a time in words, such as "3 h 05 min", "2 min 10 s" or "0.8 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
