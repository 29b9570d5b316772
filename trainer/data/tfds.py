"""Opens a split of any TFDS data set, prepared, built on the spot or downloaded; never hangs on the network."""

import contextlib
import fcntl
import functools
import os
import socket
import urllib.request
from collections.abc import Callable

import tensorflow as tf
import tensorflow_datasets as tfds

import trainer.data.handwritten_digits  # noqa: F401  registers it with TFDS
from trainer.data.autograph import as_it_is, in_graph
from trainer.data.features import flat, pick
from trainer.data.tfrecords import Records
from trainer.errors import UserError
from trainer.suggest import nearest


def open_split(
    name: str,
    split: str,
    data_dir: str | None,
    download: bool,
    features: list[str] | None,
    prepare: Callable | None,
) -> tuple[tf.data.Dataset, Records | None, int, str]:
    """(single examples as dicts in stored order, where they are, their number, a label for messages).

    Where they are is known of TFRecord files, TFDS' own default.
    """
    builder = _prepared_builder(name, data_dir, download)
    label = f"{name}:{split}"
    try:
        found = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        known, base = sorted(builder.info.splits), split.split("[")[0]
        raise UserError(
            f"The data set {name} has no split '{split}'; it has {', '.join(known)}, "
            f"and parts of them such as 'train[:80%]'.{'' if base in known else nearest(base, known)}"
        ) from error
    if not found.num_examples:
        raise UserError(f"The split {label} is empty.")
    # A fixed order is the ground that exact resume stands on.
    dataset = builder.as_dataset(split=split, shuffle_files=False)
    kept = _kept_features(label, dataset.element_spec, features)
    finish = functools.partial(_finish, kept, prepare)
    dataset = dataset.map(as_it_is(finish), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    records = None
    if builder.info.file_format is tfds.core.FileFormat.TFRECORD:
        records = Records(
            [(os.fspath(part.filename), part.skip, part.take) for part in found.file_instructions],
            lambda record: finish(builder.info.features.deserialize_example(record)),
        )
    return dataset, records, found.num_examples, label


def _finish(kept: list[str], prepare: Callable | None, example):
    """`prepare` gets the features nested, as TFDS has them; from there on each is named by its path."""
    example = pick(example, kept)
    return flat(example if prepare is None else in_graph(prepare)(example))


def _prepared_builder(name: str, data_dir: str | None, download: bool):
    tfds.disable_progress_bar()
    data_dir = os.path.expanduser(data_dir) if data_dir else None
    builder = _builder(name, data_dir)
    if _is_prepared(builder) and builder.info.splits:
        return builder
    if getattr(builder, "NEEDS_NETWORK", True):
        if not download:
            raise UserError(
                f"The data set {name} is not prepared in {builder.data_dir} and would need the network: set "
                f"tfds_data.download = True, or tfds_data.data_dir to a folder where it is prepared."
            )
        _check_network(name, builder)
    with _one_at_a_time(builder.data_dir):
        if not _is_prepared(builder):
            try:
                with contextlib.redirect_stdout(None):
                    builder.download_and_prepare()
            except Exception as error:
                raise UserError(
                    f"The data set {name} could not be prepared: {type(error).__name__}: {error}"
                ) from error
    # Another process may have prepared it since: what a builder knows, it read when it was made.
    return _builder(name, data_dir)


def _builder(name: str, data_dir: str | None):
    try:
        # try_gcs asks the network about every data set, and retries for minutes where there is none.
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.registered.DatasetNotFoundError as error:
        base = name.split("/")[0].split(":")[0]
        prepared = _prepared_names(data_dir)
        near = nearest(base, prepared) or nearest(base, tfds.list_builders())
        place = f" and {data_dir} holds none of that name" if data_dir else ""
        raise UserError(
            f"There is no TFDS data set '{name}'{place}.{near or ' `tfds.list_builders()` lists those known.'}"
            + (f" In {data_dir}: {', '.join(prepared[:10])}." if prepared else "")
            + ("" if data_dir else " If it is one that you prepared yourself, set tfds_data.data_dir.")
        ) from error
    # An AssertionError is how TFDS says that it has no such version.
    except (ValueError, AssertionError, ImportError, OSError) as error:
        base, _, config = name.split(":")[0].partition("/")
        with contextlib.suppress(tfds.core.registered.DatasetNotFoundError):
            known = list(tfds.builder_cls(base).builder_configs)
            if config and config not in known:
                raise UserError(
                    f"The TFDS data set {base} has no config '{config}'."
                    + (nearest(config, known) or f" It has {', '.join(known[:20]) or 'none'}.")
                ) from error
        said = str(error).strip().rpartition('": ')[-1]
        raise UserError(f"The TFDS data set '{name}' cannot be opened: {said}") from error


def _prepared_names(data_dir: str | None) -> list[str]:
    """The data sets in a data_dir that the config names; empty for TFDS' own default."""
    if data_dir is None:
        return []
    if not os.path.isdir(data_dir):
        raise UserError(f"tfds_data.data_dir {data_dir} does not exist.")
    return sorted(name for name in os.listdir(data_dir) if os.path.isdir(os.path.join(data_dir, name)))


def _is_prepared(builder) -> bool:
    return tf.io.gfile.exists(os.path.join(os.fspath(builder.data_dir), "dataset_info.json"))


def _check_network(name: str, builder) -> None:
    """Raises `UserError` at once where there is no network; TFDS itself retries for minutes.

    A builder of the user's own may get its data from anywhere, and a proxy looks names up for us.
    """
    if not type(builder).__module__.startswith("tensorflow_datasets.") or urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo("storage.googleapis.com", 443)
    except OSError as error:
        raise UserError(
            f"The data set {name} is not prepared in {builder.data_dir}, and there is no network to download it "
            f"from (storage.googleapis.com: {error.strerror}). Set tfds_data.data_dir to a folder where it is prepared."
        ) from error


@contextlib.contextmanager
def _one_at_a_time(data_dir):
    """Two workers that build one data set at once would each delete the other's half."""
    folder = os.path.dirname(os.fspath(data_dir))
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, ".lock"), "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise UserError(
            f"The data folder {folder} cannot be written: {error.strerror}. Set tfds_data.data_dir to another."
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kept_features(label: str, element_spec, features: list[str] | None) -> list[str]:
    """Paths of the features to keep; of one that holds others, all of them are."""
    if not isinstance(element_spec, dict):
        raise UserError(f"{label}: examples must be dicts of features, not {element_spec}.")
    known = flat(element_spec)
    if features is None:
        return [path for path, spec in known.items() if getattr(spec, "dtype", None) != tf.string]
    chosen = {name: [path for path in known if path == name or path.startswith(f"{name}/")] for name in features}
    unknown = [name for name, paths in chosen.items() if not paths]
    if unknown:
        near = nearest(unknown[0], known)
        raise UserError(f"{label} has no feature {unknown[0]!r}; it has {', '.join(known)}.{near}")
    return [path for paths in chosen.values() for path in paths]
