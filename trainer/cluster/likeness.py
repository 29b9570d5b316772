"""Shows what two workers do not have in common, both values."""

from collections.abc import Mapping


def unlike(ours: Mapping[str, str], theirs: Mapping[str, str], our_name: str, their_name: str) -> str:
    """A message that shows what two workers do not have in common, both values; "" if they are alike."""
    lines = []
    for what in dict.fromkeys([*ours, *theirs]):
        one, two = ours.get(what, "none"), theirs.get(what, "none")
        if one == two:
            continue
        pairs = _differing(one, two)
        for left, right in pairs[:4]:
            lines += [f"  {what} of {our_name}: {left}", f"  {what} of {their_name}: {right}"]
        if len(pairs) > 4:
            lines.append(f"  and {len(pairs) - 4} more lines of {what}")
    return "The workers are not alike:\n" + "\n".join(lines) if lines else ""


def _differing(one: str, two: str) -> list[tuple[str, str]]:
    """Lines that only one of the texts has, side by side; the texts themselves where they have one line."""
    ours, theirs = one.splitlines(), two.splitlines()
    only_ours = [line for line in ours if line not in theirs]
    only_theirs = [line for line in theirs if line not in ours]
    count = max(len(only_ours), len(only_theirs))
    if not count:
        return [(one, two)]  # the same lines in another order
    pad = ["not there"] * count
    return list(zip((only_ours + pad)[:count], (only_theirs + pad)[:count], strict=True))
