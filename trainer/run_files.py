"""Writes what a run starts from and what it reached; tells whether a model_dir holds another config's run."""

import json
import os
import re

from trainer.config import differing_lines, operative_config
from trainer.errors import UserError
from trainer.metric_writer import MetricWriter, read_rows
from trainer.model_dir import ModelDir, write_json, write_text
from trainer.run_parts import RunParts
from trainer.strategy import describe_strategy
from trainer.summary_plot import draw_summary


def run_config(parts: RunParts, seed: int) -> str:
    """The operative gin config, and as comments what a caller of `train` may have given without gin."""
    optimizer = parts.state.optimizer
    # Keras numbers the names of optimizers by process.
    options = {name: value for name, value in optimizer.get_config().items() if name != "name"}
    given = {
        "init_checkpoint": parts.init_checkpoint,
        "global_batch_size": parts.global_batch_size,
        "accumulation_steps": parts.accumulation_steps,
        "seed": seed,
        "train_data": f"{parts.train_data.name}, {parts.train_data.num_examples} examples",
        "optimizer": f"{type(optimizer).__name__} {json.dumps(options, default=_stable_text)}",
    }
    return (
        operative_config()
        + "\n# The run was built from:\n"
        + "".join(f"# run.{name} = {value!r}\n" for name, value in given.items())
    )


def _stable_text(value) -> str:
    """What a function is called, without where it happens to lie in this process's memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def check_same_config(files: ModelDir, config: str) -> None:
    if not files.operative_config.exists():
        return
    changed = differing_lines(_uncommented(files.operative_config.read_text()), _uncommented(config))
    if changed:
        lines = "\n".join(f"  was: {old}\n  now: {new}" for old, new in changed[:8])
        raise UserError(
            f"model_dir {files.path} holds a run of another config:\n{lines}\n"
            "Choose another --model_dir, or go back to the config that the run was started with."
        )


def _uncommented(config: str) -> str:
    """The config with its lines `# run.x = y`, comments to gin, as bindings that can be compared."""
    return config.replace("\n# run.", "\nrun.")


def start_files(parts: RunParts, files: ModelDir | None, config: str) -> MetricWriter:
    """Opens the metrics of the chief and writes what the run starts from; other workers write nothing."""
    if files is None:
        return MetricWriter(None, {}, enabled=False)
    writer = MetricWriter(
        files.metrics, {name: files.events(name) for name in ("train", "eval")}, start_step=parts.resumed_step
    )
    write_text(files.operative_config, config)
    writer.write_text("operative_config", config)
    if parts.report is not None:
        write_text(files.restore_report_text, f"{parts.report}\n{parts.proof}\n")
        write_text(files.restore_report_json, parts.report.to_json() + "\n")
        writer.write_text("restore_report", f"{parts.report}\n{parts.proof}")
    return writer


def finish_files(parts: RunParts, files: ModelDir, writer: MetricWriter, initial, final, finished: bool) -> None:
    rows = read_rows(files.metrics)
    draw_summary(rows, files.summary_plot, f"{files.path.name}: {parts.state.model.name}")
    writer.write_image("summary", files.summary_plot, parts.state.current_step())
    if finished:
        whole = files.final_weights.with_name(".tmp.weights.h5")
        parts.state.model.save_weights(whole)
        os.replace(whole, files.final_weights)
    speeds = [row["examples_per_second"] for row in rows if "examples_per_second" in row]
    write_json(
        files.summary,
        {
            "step": parts.state.current_step(),
            "num_steps": parts.num_steps,
            "finished": finished,
            "strategy": describe_strategy(parts.strategy),
            "replicas": parts.strategy.num_replicas_in_sync,
            "global_batch_size": parts.global_batch_size,
            "optimizer": type(parts.state.optimizer).__name__,
            "init_checkpoint": parts.init_checkpoint,
            "initial_metrics": initial,
            "final_metrics": final,
            "examples_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        },
    )


def recorded_metrics(rows: list[dict], initial: dict, final: dict) -> tuple[dict, dict]:
    """First and last evaluation on record: a resumed run made some of them in an earlier process."""
    evaluated = [row for row in rows if "split" in row]
    values = [{k: v for k, v in row.items() if k not in ("step", "split")} for row in evaluated]
    if not values:
        return initial, final
    return (values[0] if evaluated[0]["step"] == 0 else initial), values[-1]
