"""Lists everything that a config can bind, with its parameters, their defaults and what it does.

python -m launch.configurables [WORD...] [--gin_file=F]

WORD: lists only names that contain one of the words.  --gin_file: lists what its `import` lines bring, too.

Exit status: 0 done; 2 no name contains any of the words; 1 a bug.
"""

from absl import flags

from launch import command_line

command_line.define_config_flags()
flags.adopt_module_key_flags(command_line)


def main(words: list[str]) -> None:
    import trainer  # noqa: F401  registers what the library makes bindable
    from trainer.config import configurables, register_keras, summary_of
    from trainer.errors import UserError
    from trainer.suggest import nearest

    register_keras()
    if flags.FLAGS.gin_file:
        command_line.load_config()
    known = configurables()
    chosen = [
        (selector, parameters)
        for selector, parameters in known
        if not words or any(word.lower() in selector.lower() for word in words)
    ]
    if not chosen:
        names = [selector.split(".")[-1] for selector, _ in known]
        raise UserError(f"Nothing that can be bound has {words[0]!r} in its name.{nearest(words[0], names)}")
    for selector, parameters in chosen:
        print(f"{selector}({parameters})")
        if summary := summary_of(selector):
            print(f"    {summary}")


if __name__ == "__main__":
    command_line.run(main, takes_words=True)
