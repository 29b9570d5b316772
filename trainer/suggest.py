"""The nearest right name to one that is not known, as the end of a message."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], kind: str = "", cutoff: float = 0.5) -> str:
    """` Did you mean 'x'?`, or else the known ones if they are few, or else nothing."""
    names = sorted(set(known))
    # A name that is right but for its case would not come out as close.
    lower = {other.lower(): other for other in reversed(names)}
    near = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=cutoff)
    if near:
        return f" Did you mean '{lower[near[0]]}'?"
    return f" Known {kind}: {', '.join(names)}." if kind and 0 < len(names) < 40 else ""
