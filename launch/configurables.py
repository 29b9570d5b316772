"""Lists everything that a config can bind, with its parameters and their defaults.

python -m launch.configurables [NAME...]     # only those whose name contains one of the words
"""

import sys

import trainer  # noqa: F401  registers what the library makes bindable
from trainer.config import configurables, register_keras


def main(words: list[str]) -> None:
    register_keras()
    for selector, parameters in configurables():
        if not words or any(word.lower() in selector.lower() for word in words):
            print(f"{selector}({parameters})")


if __name__ == "__main__":
    main(sys.argv[1:])
