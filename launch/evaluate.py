"""Evaluates a checkpoint's weights on every example of a config's evaluation data.

python -m launch.evaluate --gin_file=configs/runs/digits_adam_to_sgd.gin --model_dir=runs/digits_adam_to_sgd

With --continuous it follows a run that another process writes, and ends with it: a line, and a row in
continuous_metrics.jsonl and TensorBoard, for each checkpoint. Start it after the run, which otherwise may
still be at an earlier end. A damaged checkpoint is passed over and said; a second follower is refused.

Prints one line of JSON. Exit status: 0 done; 2 a mistake in flags, config or data; 75 where
another worker was lost, run it again; 1 a bug.
"""

import json
import sys
from pathlib import Path

from absl import flags

from launch import command_line

command_line.define_config_flags()
command_line.define_model_dir_flag()
command_line.define_strategy_flags()
flags.adopt_module_key_flags(command_line)
flags.DEFINE_string("checkpoint", None, "Prefix or folder to evaluate; by default the newest of the model_dir.")
flags.DEFINE_bool("continuous", False, "Follow a run that another process writes, checkpoint by checkpoint.")
flags.DEFINE_float("timeout_seconds", 0.0, "With --continuous: end when no new one has come for so long; 0 waits on.")


def main() -> None:
    import trainer  # noqa: F401  registers what the library makes bindable
    from trainer.config import bindings_of, settings_of
    from trainer.data.given import as_data
    from trainer.errors import UserError
    from trainer.run import evaluate_checkpoint

    command_line.load_config()
    checkpoint = flags.FLAGS.checkpoint or command_line.required_model_dir()
    strategy = command_line.strategy_from_flags()
    bound = bindings_of("train", "model", "task", "eval_data", "global_batch_size")
    bound |= settings_of("step", "ema_decay") | settings_of("finetune", "lora")
    rules = settings_of("restore", "rename", "ignore", "match", "root")
    if bound["eval_data"] is None:
        raise UserError("The config has no evaluation data: set EVAL_DATA.")
    bound["eval_data"] = as_data(bound["eval_data"], "EVAL_DATA")
    if flags.FLAGS.continuous:
        return _follow(bound, strategy)
    report, metrics = evaluate_checkpoint.load_and_evaluate(
        bound["model"], bound["task"], bound["eval_data"], checkpoint, bound["global_batch_size"], strategy,
        ema=bound["ema_decay"] is not None, lora=bound["lora"], **rules,
    )  # fmt: skip
    print(json.dumps({"checkpoint": report.checkpoint, "split": bound["eval_data"].split_label, **metrics}))
    return None


def _follow(bound: dict, strategy) -> None:
    from trainer.errors import UserError
    from trainer.output.model_dir import ModelDir, ModelDirLock

    if flags.FLAGS.checkpoint:
        raise UserError(
            "--checkpoint names one checkpoint, --continuous follows all of a --model_dir; give one of them."
        )
    files = ModelDir(Path(command_line.required_model_dir()))
    if not files.path.is_dir():
        raise UserError(f"model_dir {files.path} is not there; start the run first, or mend the path.")
    with ModelDirLock(files, follower=True):
        _write_what_comes(bound, strategy, files)


def _write_what_comes(bound: dict, strategy, files) -> None:
    from trainer.output.metric_writer import MetricWriter, read_rows
    from trainer.run import evaluate_checkpoint

    split = bound["eval_data"].split_label
    evaluated = read_rows(files.continuous_metrics)
    writer = MetricWriter(
        files.continuous_metrics,
        {"eval": files.events("continuous_eval")},
        start_step=max((row["step"] for row in evaluated), default=0),
    )
    found = evaluate_checkpoint.follow(
        bound["model"], bound["task"], bound["eval_data"], files.path, bound["global_batch_size"], strategy,
        ema=bound["ema_decay"] is not None, timeout_seconds=flags.FLAGS.timeout_seconds, lora=bound["lora"],
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    for step, metrics in found:
        writer.write(step, metrics, split=split)
        writer.flush()
        print(json.dumps({"step": step, "split": split, **metrics}), flush=True)
    writer.close()


if __name__ == "__main__":
    command_line.run(main)
