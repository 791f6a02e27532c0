"""How numbers are written on the page."""

from __future__ import annotations

# Narrow and unbreakable.
THIN_SPACE = "\u202f"
MINUS = "\u2212"


def share(value: float | None) -> str:
    """Write a share or a similarity as papers do: .237, 1.000, −.041; a dash for None."""
    if value is None:
        return "–"
    text = f"{abs(value):.3f}".removeprefix("0")
    return f"{MINUS}{text}" if value <= -0.0005 else text


def small_share(value: float) -> str:
    """Write a share that may be too small for three digits."""
    return share(value) if value >= 0.001 else "<" + THIN_SPACE + ".001"


def count(value: float | None) -> str:
    """Write a number with thin separators: 305 283; halves (of a median) are kept."""
    if value is None:
        return "–"
    whole = float(value).is_integer()
    return (f"{value:,.0f}" if whole else f"{value:,.1f}").replace(",", THIN_SPACE)


def duration(seconds: float) -> str:
    """Write a time so that its size is seen at once: 0.41 s, 7.3 s, 48 s, 5 min 12 s."""
    if seconds < 59.5:
        digits = 2 if seconds < 1 else 1 if seconds < 10 else 0
        return f"{seconds:.{digits}f}{THIN_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{THIN_SPACE}min {rest}{THIN_SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN_SPACE}h {minutes}{THIN_SPACE}min"


def arrow(direction: str) -> str:
    """Write "image->text" with an arrow."""
    return direction.replace("->", " → ")
