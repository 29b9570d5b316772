"""Shows text of a stranger so that it cannot steer a terminal."""


def printable(text: str, kept: str = "") -> str:
    r"""The text with control characters, line breaks and marks of direction as `\x1b`, `\n`, `\u202e`.

    kept: characters that may stay as they are. Letters of any language do.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
        for letter in text
    )
