"""Packages import only from lower levels, and no module imports itself by way of others."""

import ast
import functools
import graphlib
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# The packages and single modules of trainer/, from top to bottom. Those of one level do not import each other.
LEVELS = [
    {"comparison"},
    {"run"},
    {"step"},
    {"checkpoints"},
    {"tasks", "optimizers"},
    {"restore"},
    {"data", "output", "cluster"},
    {"config"},
    {"models", "errors", "suggest", "keras_internals", "tf_internals"},
]


def modules_of(package: str) -> dict[str, Path]:
    """Dotted name -> file, of every module below a folder of the repository."""
    paths = sorted((REPOSITORY / package).rglob("*.py"))
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


TRAINER, LAUNCH = modules_of("trainer"), modules_of("launch")


@functools.cache
def imports_of(path: Path, at_once: bool = False) -> set[str]:
    """Dotted names of everything that the file imports; with at_once, without what its functions import when called."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def package_of(name: str) -> str:
    return name.split(".")[1]


def test_every_package_has_a_level():
    found = {package_of(name) for name in TRAINER if name != "trainer"}
    assert found == set().union(*LEVELS) and len(found) == sum(map(len, LEVELS))


def test_packages_import_from_lower_levels_only():
    level = {package: number for number, packages in enumerate(LEVELS) for package in packages}
    upwards = [
        f"{name} imports {other}"
        for name, path in TRAINER.items()
        if name != "trainer"
        for other in sorted(imports_of(path) & TRAINER.keys() - {"trainer"})
        if package_of(other) != package_of(name) and level[package_of(other)] <= level[package_of(name)]
    ]
    assert upwards == []


def test_no_module_imports_itself_by_way_of_others():
    for modules in (TRAINER, LAUNCH):
        # A package's own `__init__` counts as imported by name only: Python runs it with every module in it.
        graph = {
            name: {
                other
                for other in imports_of(path, at_once=True) & modules.keys()
                if not f"{name}.".startswith(f"{other}.")
            }
            for name, path in modules.items()
        }
        list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_commands_import_each_other_nowhere_and_cluster_imports_no_tensorflow():
    shared = {"launch", "launch.command_line"}
    for name, path in LAUNCH.items():
        imported = imports_of(path)
        if name.startswith("launch.cluster"):
            assert not {other.split(".")[0] for other in imported} & {"trainer", "tensorflow", "keras", "numpy"}, name
        elif name not in shared:
            others = {other for other in imported if other in LAUNCH} - shared - {name}
            assert all(other.startswith("launch.cluster") for other in others), f"{name} imports {others}"


def test_a_module_opens_with_one_sentence_and_has_a_telling_name():
    for name, path in {**TRAINER, **LAUNCH}.items():
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        if docstring is None:
            assert path.stem == "__init__" and not path.read_text(), f"{name} has no docstring"
            continue
        first = docstring.splitlines()[0]
        assert first.endswith((".", "?")), f"{name}: the first line is one sentence, the module's job"
        assert not any(word in path.stem for word in ("utils", "common", "helpers")), name


# Words that docstrings, comments, messages and docs do not use; the field has plainer ones.
BANNED = ("told", "go on", "goes on", "nobody", "somebody", "whoever", "anew", "hinders", "hindered", "hindrance")


def test_text_uses_the_fields_words():
    paths = [*TRAINER.values(), *LAUNCH.values(), *(REPOSITORY / "configs").rglob("*.gin")]
    paths += [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "Makefile")]
    paths += [*(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "docs").rglob("*.py")]
    paths += [path for kind in ("md", "sbatch", "sh", "yaml") for path in (REPOSITORY / "launch").rglob(f"*.{kind}")]
    paths += [path for path in (REPOSITORY / "tests").rglob("*.py") if path != Path(__file__)]
    pattern = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_no_docstring_begins_with_a_word_that_names_nothing():
    """A first line names the thing, or who does what; "What a run writes" makes the reader wait for the noun."""
    found = []
    for path in [*TRAINER.values(), *LAUNCH.values()]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                docstring = ast.get_docstring(node) or ""
                if re.match(r"(Of|What|Around|That of|From here on)\b", docstring):
                    found.append(f"{path.relative_to(REPOSITORY)}: {docstring.splitlines()[0]}")
    assert found == []


def test_a_docstring_has_one_parameter_a_line():
    found = []
    for path in [*TRAINER.values(), *LAUNCH.values()]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                for line in (ast.get_docstring(node) or "").splitlines():
                    if re.match(r"\S.*?:.*\.  ?[\w, *]+: ", line) and re.search(r"\.  [\w, *]+: ", line):
                        found.append(f"{path.relative_to(REPOSITORY)}: {line}")
    assert found == []
