"""gin files and bindings -> one checked configuration; a typo stops here and names the nearest name."""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import gin
import keras

from trainer.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent

# Bindings that may change between two starts of one run without making it another run.
HARMLESS = (
    "num_steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoints_to_keep",
    "steps_per_loop",
)

_KERAS_KINDS: tuple[tuple[object, str, type], ...] = (
    (keras.optimizers, "keras.optimizers", keras.optimizers.Optimizer),
    (
        keras.optimizers.schedules,
        "keras.optimizers.schedules",
        keras.optimizers.schedules.LearningRateSchedule,
    ),
    (keras.losses, "keras.losses", keras.losses.Loss),
    (keras.metrics, "keras.metrics", keras.metrics.Metric),
)


@functools.cache
def register_keras() -> None:
    """Makes every Keras optimizer, schedule, loss, metric and `keras.applications` model bindable.

    Each goes by its own name (`SGD`, `CosineDecay`). Where a loss and a metric share one, the bare
    name is the loss's and the metric wants its module in front (`metrics.MeanSquaredError`). What
    gin builds are true Keras objects.
    A `keras.applications` model has `weights=None` unless bound: its weights come from
    `init_checkpoint`, and nothing is downloaded behind anybody's back.
    """
    for namespace, module, base in _KERAS_KINDS:
        for name in dir(namespace):
            candidate = getattr(namespace, name)
            if inspect.isclass(candidate) and issubclass(candidate, base) and name == candidate.__name__:
                shared = module == "keras.losses" and hasattr(keras.metrics, name)
                _register(candidate, name, "" if shared else module)
    for name in dir(keras.applications):
        candidate = getattr(keras.applications, name)
        if callable(candidate) and not inspect.ismodule(candidate) and not name.startswith("_"):
            _register(candidate, name, "keras.applications", weights=None)


def parse_config(gin_files: Sequence[str], gin_params: Sequence[str], search_paths: Sequence[str] = ()) -> None:
    """Parses files, then bindings (later ones win), and locks the configuration.

    search_paths: folders where files and their includes are looked for, after the working folder;
      the folder that holds `configs/` is always the last.
    Raises `UserError` for a file that is not there, a syntax error, an unknown name or parameter
    (naming the nearest), an undefined macro, or a module that cannot be imported.
    """
    for folder in (*search_paths, str(REPOSITORY)):
        gin.add_config_file_search_path(folder)
    try:
        gin.parse_config_files_and_bindings(
            list(gin_files),
            list(gin_params),
            skip_unknown=False,
            finalize_config=False,
            print_includes_and_imports=False,
        )
        gin.finalize()
    except (ValueError, KeyError, SyntaxError, OSError, ImportError) as error:
        raise UserError(_explain(error)) from error


def operative_config() -> str:
    """The parameters that the program has used so far, as gin text."""
    return gin.operative_config_str()


def config_text() -> str:
    """Every binding as it was given, as gin text; what two starts of a run are compared by."""
    return gin.config_str()


def differing_lines(old: str, new: str) -> list[tuple[str, str]]:
    """(old, new) of each binding that differs between two config texts, harmless ones left out."""
    before, after = _bindings(old), _bindings(new)
    names = [name for name in dict.fromkeys([*before, *after]) if not _is_harmless(name)]
    return [
        (before.get(name, f"{name} is not set"), after.get(name, f"{name} is not set"))
        for name in names
        if before.get(name) != after.get(name)
    ]


def configurables() -> list[tuple[str, str]]:
    """(selector, parameters with defaults) of all that can be bound, sorted by selector."""
    found = []
    for selector in sorted(_selectors()):
        if not selector.startswith("gin."):
            found.append((selector, _signature_text(gin.get_configurable(selector))))
    return found


def _register(target: Callable, name: str, module: str, **defaults) -> None:
    signature = inspect.signature(target)
    # Keras classes take **kwargs, so that gin would accept any misspelt parameter: name the real ones.
    parameters = [
        parameter.replace(default=defaults.get(parameter.name, parameter.default))
        for parameter in signature.parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]

    def build(*args, **kwargs):
        return target(*args, **{**defaults, **kwargs})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = target.__doc__
    build.__module__ = module or None  # type: ignore[assignment]
    build.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    gin.external_configurable(build, name=name, module=module or None)


def _explain(error: BaseException) -> str:
    """gin's message, with the nearest known name where a name is not known."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = text.strip().strip('"')
    if isinstance(error, ModuleNotFoundError):
        return f"The config imports a module that is not there: {text}"
    parameter = re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", text)
    if parameter:
        known = inspect.signature(gin.get_configurable(parameter[1])).parameters
        return text + _nearest(parameter[2], list(known), "parameters of " + parameter[1])
    unknown = re.search(r"No configurable matching (?:reference )?'@?([^']+?)(?:\(\))?'", text)
    if unknown:
        return text + _nearest(unknown[1].split("/")[-1], [name.split(".")[-1] for name in _selectors()], "names")
    macro = re.search(r"No bindings specified for '([^']+)/(?:gin\.)?macro'", text)
    if macro:
        macros = re.findall(r"^([A-Z][A-Z0-9_]*) =", gin.config_str(), re.MULTILINE)
        return f"The macro %{macro[1]} is used but never set." + _nearest(macro[1], macros, "macros")
    return text


def _nearest(name: str, known: list[str], kind: str) -> str:
    near = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.5)
    if near:
        return f"\nDid you mean '{near[0]}'?"
    return (
        f"\nKnown {kind}: {', '.join(sorted(set(known)))}."
        if len(known) < 40
        else ("\n`python -m launch.configurables` lists what can be bound.")
    )


def _selectors() -> list[str]:
    return [selector for selector, _ in gin.config._REGISTRY.items()]


def _signature_text(target: Callable) -> str:
    parameters = inspect.signature(target).parameters.values()
    return ", ".join(
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={_plain(parameter.default)}"
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    )


def _plain(value) -> str:
    text = str(value) if value is gin.REQUIRED else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _bindings(text: str) -> dict[str, str]:
    """name -> the whole binding, its continuation lines joined."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        match = re.match(r"^([\w./]+) = ?", line)
        if match:
            name = match[1]
            found[name] = line
        elif name and line.startswith(" "):
            found[name] += " " + line.strip()
        elif line.startswith(("import", "from", "#")) or not line.strip():
            name = ""
    return found


def _is_harmless(name: str) -> bool:
    return name.split(".")[-1].lower() in HARMLESS
