"""Restores a checkpoint's weights, replaces the optimizer, and trains.

python -m launch.train --gin_file=configs/runs/digits_adam_to_sgd.gin --model_dir=runs/digits_adam_to_sgd

Exit status: 0 done; 2 a mistake in flags, config or data; 75 preempted, run it again; 1 a bug.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from absl import flags

from launch import STARTED_AT, cluster, command_line

command_line.define_config_flags()
command_line.define_model_dir_flag()
command_line.define_strategy_flags()
cluster.define_flags()
flags.adopt_module_key_flags(command_line)
flags.adopt_module_key_flags(cluster.command_flags)
flags.DEFINE_bool("dry_run", False, "Do everything up to the first step, print it, write nothing.")
flags.DEFINE_bool("allow_config_change", False, "Resume a run whose config was another one, from its last step.")
flags.DEFINE_integer("timed_steps", 0, "With --dry_run: steps to time, data and step each alone.", lower_bound=0)


def main() -> int:
    import gin

    import trainer  # noqa: F401  registers what the library makes bindable
    from trainer.cluster.strategy import build_strategy
    from trainer.config import bindings_of, check_run_is_complete
    from trainer.errors import UserError
    from trainer.output.model_dir import ModelDir
    from trainer.restore import find_checkpoint
    from trainer.run.inputs import as_restore
    from trainer.run.resume import may_resume
    from trainer.run.settings import Invocation
    from trainer.step.xla_check import describe_fitness

    command_line.load_config()
    check_run_is_complete()
    join_cluster()
    dry_run = flags.FLAGS.dry_run
    model_dir = flags.FLAGS.model_dir if dry_run else command_line.required_model_dir()
    if flags.FLAGS.timed_steps and not dry_run:
        raise UserError("--timed_steps belongs to --dry_run: a run shows its own speed.")
    options: dict[str, Any] = {}
    stands_in = dry_run and command_line.wants_missing_tpu()
    if stands_in:
        print("There is no TPU here: the step is compiled by XLA on this machine's CPU, for one replica.")
        strategy = build_strategy("one_device")
        options["step"] = dataclasses.replace(bindings_of("train", "step")["step"], jit_compile=True)
    else:
        strategy = command_line.strategy_from_flags()
    # A mistyped path should not wait for the data to be read.
    restore = as_restore(bindings_of("train", "restore")["restore"])
    if restore is not None and not (model_dir and may_resume(ModelDir(Path(model_dir)))):
        find_checkpoint(restore.checkpoint)
    invocation = Invocation(
        allow_config_change=flags.FLAGS.allow_config_change,
        dry_run=dry_run,
        timed_steps=flags.FLAGS.timed_steps,
        started_at=STARTED_AT,
    )
    train = gin.get_configurable("experiment.train")
    result = train(model_dir=model_dir, strategy=strategy, invocation=invocation, **options)
    if stands_in and result.tpu_obstacles:
        raise UserError(
            f"--strategy=tpu: the step {describe_fitness(result.tpu_obstacles)}. Give each tensor one size: weigh "
            "by a mask instead of picking, pad instead of cutting."
        )
    return 0 if result.finished or dry_run else command_line.EXIT_RUN_AGAIN


def join_cluster() -> None:
    """Tells TensorFlow which worker this process is, by whatever started it."""
    from trainer.errors import UserError

    if flags.FLAGS.strategy not in ("auto", "multi_worker"):
        return
    try:
        found = cluster.find_cluster(os.environ, flags.FLAGS.cluster, flags.FLAGS.port_base)
    except cluster.ClusterMistake as mistake:
        raise UserError(str(mistake)) from mistake
    if found and found.tf_config:
        print(f"cluster          {found.reason}", flush=True)
        os.environ["TF_CONFIG"] = found.tf_config_json


if __name__ == "__main__":
    command_line.run(main, resumes=True)
