"""Evaluates a checkpoint's weights on every example of a config's evaluation data.

python -m launch.evaluate --gin_file=configs/runs/digits_adam_to_sgd.gin --model_dir=runs/digits_adam_to_sgd

Prints one line of JSON. Exit status: 0 done; 2 a mistake in flags, config or data; 1 a bug.
"""

import json

from absl import flags

import trainer  # noqa: F401  registers what the library makes bindable
from trainer import command_line, inspection
from trainer.errors import UserError

command_line.define_config_flags()
command_line.define_model_dir_flag()
command_line.define_strategy_flags()
flags.adopt_module_key_flags(command_line)
flags.DEFINE_string("checkpoint", None, "Prefix or folder to evaluate; by default the newest of the model_dir.")


def main() -> None:
    command_line.load_config()
    checkpoint = flags.FLAGS.checkpoint or command_line.required_model_dir()
    strategy = command_line.strategy_from_flags()
    bound = command_line.bindings_of("train", "model", "task", "eval_data", "global_batch_size", "ema_decay")
    if bound["eval_data"] is None:
        raise UserError("The config has no evaluation data: set EVAL_DATA.")
    report, metrics = inspection.load_and_evaluate(
        bound["model"], bound["task"], bound["eval_data"], checkpoint, bound["global_batch_size"], strategy,
        ema=bound["ema_decay"] is not None,
    )  # fmt: skip
    print(json.dumps({"checkpoint": report.checkpoint, "split": bound["eval_data"].split_label, **metrics}))


if __name__ == "__main__":
    command_line.run(main)
