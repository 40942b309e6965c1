"""Numbers as text."""

import math


def format_number(value: float, digits: int = 3) -> str:
    """A number in a few digits without an exponent where that is readable; NaN is a dash.

    Example:
        >>> format_number(1234.5), format_number(0.12345), format_number(float("inf"))
        ('1,230', '0.123', 'unlimited')
    """
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "unlimited" if value > 0 else "-unlimited"
    rounded = float(f"{value:.{digits}g}")
    if 10 ** (digits - 1) <= abs(rounded) < 1e9:
        return f"{rounded:,.0f}"
    return f"{rounded:.{digits}g}"
