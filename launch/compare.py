"""Compares optimizers: each from the same restored weights, on the same data, for the same budget, over several seeds.

python -m launch.compare --gin_file=configs/runs/compare_digits.gin --model_dir=runs/compare_digits

The config names the members, `compare.members = ['adam', 'sgd']`, and sets what is each one's own in a scope of
that name, `adam/train.optimizer = @Adam`. Each run is a process of its own; --parallel=N makes N of them at a time.
The same command resumes where it stopped, and makes what was added.

Writes comparison.md, .csv, .png and .html. Exit status: 0 done, a run that diverged being a result; 2 a mistake in
flags, config or data, or a run that failed; 75 preempted, run it again; 1 a bug.
"""

from absl import flags

from launch import command_line

command_line.define_config_flags()
command_line.define_model_dir_flag()
command_line.define_strategy_flags()
flags.adopt_module_key_flags(command_line)
flags.DEFINE_integer("parallel", 1, "Runs at a time, each in a process of its own.", lower_bound=1)
flags.DEFINE_bool("dry_run", False, "Check all members up to their first step, show the plan, write nothing.")


def main() -> int:
    import gin

    import trainer  # noqa: F401  registers what the library makes bindable
    from trainer.comparison import Devices

    command_line.load_config()
    if not flags.FLAGS.dry_run:
        command_line.required_model_dir()
    return gin.get_configurable("comparison.compare")(
        model_dir=flags.FLAGS.model_dir,
        devices=Devices(flags.FLAGS.strategy, flags.FLAGS.virtual_devices, flags.FLAGS.tpu),
        parallel=flags.FLAGS.parallel,
        dry_run=flags.FLAGS.dry_run,
        source_data=None,  # a run's process builds it: this one needs neither data nor devices
    )


if __name__ == "__main__":
    command_line.run(main, resumes=True)
