"""Writes what a run starts from and what it reached."""

import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf

from trainer.cluster.strategy import describe_strategy
from trainer.config import operative_config
from trainer.optimizers.build import describe_kind
from trainer.optimizers.learning_rate import rate_at, rate_of
from trainer.output.atomic_files import replacing, write_json, write_text
from trainer.output.metric_writer import MetricWriter, read_rows
from trainer.output.model_dir import ModelDir
from trainer.output.summary_plot import draw_summary
from trainer.restore import OWN_DATASET, layers_of, live_states, states_as_json
from trainer.run.build import Built


def start_files(built: Built, files: ModelDir | None, identity: str, resumed_step: int | None) -> MetricWriter:
    """Opens the metrics of the chief and writes what the run starts from; other workers write nothing."""
    if files is None:
        return MetricWriter(None, {}, enabled=False)
    writer = MetricWriter(
        files.metrics, {name: files.events(name) for name in ("train", "eval")}, start_step=resumed_step or 0
    )
    if built.state.current_step() < built.settings.num_steps:
        _take_back_end(built.state.current_step(), built.settings.num_steps, files)
    given = "".join(f"# {line}\n" for line in identity.splitlines())
    config = operative_config().strip() or "# Called from Python, without gin:\n" + given
    write_text(files.operative_config, config + "\n")
    write_text(files.run_identity, identity)
    writer.write_text("operative_config", config)
    if built.report is not None:
        start = [built.report, built.proof, *([built.state_transfer] if built.state_transfer else [])]
        text = "\n".join(map(str, start))
        write_text(files.restore_report_text, f"{text}\n")
        facts = {
            "optimizer_proof": dataclasses.asdict(built.proof) if built.proof else None,
            "state_transfer": dataclasses.asdict(built.state_transfer) if built.state_transfer else None,
        }
        write_json(files.restore_report_json, {**json.loads(built.report.to_json()), **facts})
        writer.write_text("restore_report", text)
    return writer


def finish_files(
    built: Built,
    files: ModelDir,
    writer: MetricWriter,
    initial: dict[str, float],
    evaluated: tuple[int, dict[str, float]] | None,
    finished: bool,
) -> None:
    """Writes the final weights of a finished run, and the summary and picture of any.

    evaluated: the last evaluation, (step, metrics).
    """
    restore = built.settings.restore
    if finished:
        with built.state.evaluated_weights():
            _save_final_weights(built.state.model, files)
    rows = read_rows(files.metrics)
    with replacing(files.summary_plot) as temporary:
        draw_summary(rows, temporary, f"{files.path.name}: {built.state.model.name}", _rates(built))
    writer.write_image("summary", files.summary_plot, built.state.current_step())
    speeds = [row["examples_per_second"] for row in rows if "examples_per_second" in row]
    write_json(
        files.summary,
        {
            "step": built.state.current_step(),
            "num_steps": built.settings.num_steps,
            "finished": finished,
            "strategy": describe_strategy(built.inputs.strategy),
            "replicas": built.inputs.strategy.num_replicas_in_sync,
            "global_batch_size": built.settings.global_batch_size,
            "optimizer": describe_kind(built.state.optimizer),
            "ema_decay": built.settings.step.ema_decay,
            "init_checkpoint": str(restore.checkpoint) if restore else None,
            "initial_metrics": initial,
            "final_metrics": evaluated[1] if evaluated and evaluated[0] == built.state.current_step() else {},
            "last_evaluation": {"step": evaluated[0], "metrics": evaluated[1]} if evaluated else None,
            "examples_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        },
    )


def _rates(built: Built) -> list[tuple[int, float]]:
    """(step, rate) of a schedule up to where the run is, closer together at its beginning, where warm-ups are.

    None for a constant rate, nor for phases, whose beginning evaluations may decide.
    """
    rate, steps = rate_of(built.state.optimizer), built.state.current_step()
    is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    if built.settings.finetune.phases or not is_schedule or not steps:
        return []
    before, points = built.state.optimizer_step(0), {*np.linspace(1, steps, 20), *np.geomspace(1, steps, 20)}
    return [(step, rate_at(rate, before + step - 1)) for step in sorted({round(point) for point in points})]


def _take_back_end(step: int, num_steps: int, files: ModelDir) -> None:
    """Tells a follower, which waits for the end, that a run continues past an old end, from `step`.

    The weights of the old end may by now be all that is left of it: they get another name.
    """
    try:
        summary = json.loads(files.summary.read_text())
    except (FileNotFoundError, ValueError):
        summary = {}
    if summary.get("finished"):
        write_json(files.summary, {**summary, "num_steps": num_steps, "finished": False})
    if files.final_weights.exists():
        # Without a summary a kill came just before it: the run has not been anywhere else yet.
        files.final_weights.replace(files.weights_of(summary.get("step", step)))


def _save_final_weights(model: keras.Model, files: ModelDir) -> None:
    """Writes the weights alone, whole or not at all.

    A model that its builder compiled has an optimizer of its own, never used here; Keras would
    write it too, and load it into whatever model loads the weights.
    """
    compiled_with = getattr(model, "optimizer", None)
    if compiled_with is not None:
        model.optimizer = None
    try:
        with replacing(files.final_weights) as temporary:
            # HDF5 1.14 ends in a segmentation fault where the disk is full.
            _make_sure_of_room(temporary, model)
            model.save_weights(temporary)
            _add_layer_states(temporary, model)
    finally:
        if compiled_with is not None:
            model.optimizer = compiled_with


def _add_layer_states(path: Path, model: keras.Model) -> None:
    """Keeps vocabularies beside the weights that were trained with them; Keras writes none into such a file."""
    states = live_states(model)
    if states:
        with h5py.File(path, "r+") as file:
            file[OWN_DATASET] = np.frombuffer(states_as_json(states).encode("utf8", "surrogateescape"), np.uint8)


def _make_sure_of_room(path: Path, model: keras.Model) -> None:
    """Raises `OSError` where the weights have none, before HDF5 meets it."""
    values_bytes = sum(math.prod(weight.shape) * tf.as_dtype(weight.dtype).size for weight in model.weights)
    # Names and the like took 1.8 kB a variable.
    about_bytes = values_bytes + 4_096 * (len(model.weights) + len(layers_of(model))) + 65_536
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, about_bytes)
        except AttributeError:
            return  # macOS has no word for it
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            # Some file systems reserve nothing.


def recorded_metrics(
    rows: list[dict], initial: dict, last: tuple[int, dict] | None
) -> tuple[dict, tuple[int, dict] | None]:
    """The evaluation of step 0 and the last one, (step, metrics): a resumed run made some in an earlier process."""
    evaluated = [row for row in rows if "split" in row]
    values = [{k: v for k, v in row.items() if k not in ("step", "split")} for row in evaluated]
    if not values:
        return initial, last
    return (values[0] if evaluated[0]["step"] == 0 else initial), (evaluated[-1]["step"], values[-1])
