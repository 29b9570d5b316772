"""A hook of MkDocs: writes the reference pages from signatures, docstrings and flags, each time the site is built."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import griffe
from mkdocs.structure.files import File

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = ("train", "evaluate", "inspect", "compare", "local", "cluster", "report", "configurables")


def on_files(files, config):
    """Adds the pages to those of the folder."""
    sys.path.insert(0, str(REPOSITORY))
    pages = {"settings": settings_page, "gin": gin_page, "flags": flags_page, "python": python_page}
    for name, page in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def settings_page() -> str:
    import trainer
    from trainer.config.settings import DECLARED

    assert trainer.train  # its import declares the classes
    lines = [
        "# Settings",
        "",
        "A field is set in gin by its name, `Intervals.eval_every = 20`, and in Python by its class, "
        "`trainer.Intervals(eval_every=20)`.",
        "",
    ]
    for name, entry in DECLARED.items():
        notes = [
            f"`train` takes it as `{entry.parameter}`.",
            "Only flags set it, no config." if entry.by_flag else "",
            "A resumed run may have other values." if entry.may_change else "Other values make another run.",
            "Members of a comparison may differ in it." if entry.may_differ else "",
        ]
        documented = _documented(entry.cls)
        lines += [f"## {name}", "", inspect.getdoc(entry.cls) or "", "", " ".join(note for note in notes if note), ""]
        lines += ["| field | type | default | |", "|---|---|---|---|"]
        for field in dataclasses.fields(entry.cls):
            kind, text = documented[field.name]
            kind = kind.replace(" | ", " or ")
            default = "must be set" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
            cells = (f"`{field.name}`", f"`{kind}`", default, text)
            lines.append("| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _documented(cls: type) -> dict[str, tuple[str, str]]:
    """{field: (annotation, docstring)}, of the class and those that it is derived from."""
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__[:-1]):
        module = griffe.load(base.__module__, search_paths=[str(REPOSITORY)])
        for name, attribute in module[base.__name__].attributes.items():
            if attribute.docstring is not None:
                found[name] = (str(attribute.annotation), attribute.docstring.value)
    return found


def gin_page() -> str:
    from trainer.config import configurables, register_keras

    register_keras()
    lines = ["# gin names", "", "All that a config can bind, with the defaults; a bare parameter has none.", ""]
    lines += [f"- `{selector}({signature})`" for selector, signature in configurables()]
    return "\n".join(lines) + "\n"


def flags_page() -> str:
    lines = ["# Flags", "", "Of each command, as `python -m launch.COMMAND --help` prints them.", ""]
    for command in COMMANDS:
        line = [sys.executable, "-m", f"launch.{command}", "--help"]
        done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        lines += [f"## {command}", "", "```text", done.stdout.replace(f"{REPOSITORY}/", "").strip(), "```", ""]
    return "\n".join(lines)


def python_page() -> str:
    import trainer
    from trainer.config.settings import DECLARED

    lines = ["# Python", "", "The settings classes have [a page of their own](settings.md).", ""]
    for name in trainer.__all__:
        target = getattr(trainer, name)
        if name not in DECLARED and not inspect.ismodule(target):
            lines += [f"::: {target.__module__}.{target.__qualname__}", ""]
    return "\n".join(lines)
