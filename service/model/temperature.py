"""The temperature of a catalogue: higher where there are few items.

Cosines are at most 1 apart, so a low temperature is what lets one item stand out among many. Among
few it makes the model sure too soon, and it learns its histories by heart. What did best was
measured on two catalogues, of 1,700 and of 43,000 items, and lies on the curve below; there is no
theory behind its exponent (decision 0024).
"""

import math

_LARGE = 30_000  # items from which the setting holds as it is
_EXPONENT = 2.0
_MOST = 3.0


def temperature_for(items: int, setting: float) -> float:
    """What cosines are divided by, for a model that knows so many items."""
    factor = math.pow(math.log(_LARGE) / math.log(max(items, 2)), _EXPONENT)
    return setting * min(max(factor, 1.0), _MOST)
