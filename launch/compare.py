"""Compares optimizers: each from the same restored weights, on the same data, for the same budget, over several seeds.

python -m launch.compare --gin_file=configs/runs/compare_digits.gin --model_dir=runs/compare_digits

The config names the members, `compare.members = ['adam', 'sgd']`, and sets what is each one's own in a scope of
that name, `adam/train.optimizer = @Adam`. One run comes after the other in this process, or --parallel=N of them at
a time in processes of their own. The same command resumes where it stopped, and makes what was added.

Writes comparison.md, .csv, .png and .html. Exit status: 0 done, a run that diverged being a result; 2 a mistake in
flags, config or data, or a run that failed; 75 preempted, run it again; 1 a bug.
"""

import sys

from absl import flags

from launch import command_line

command_line.define_config_flags()
command_line.define_model_dir_flag()
command_line.define_strategy_flags()
flags.adopt_module_key_flags(command_line)
flags.DEFINE_integer("parallel", 0, "Processes at a time; 0 makes all runs in this one.", lower_bound=0)
flags.DEFINE_string("only", None, "Make one run, as in adam/seed_0, and no report.")
flags.DEFINE_bool("dry_run", False, "Check all members up to their first step, show the plan, write nothing.")


def main() -> int:
    import gin
    import tensorflow as tf

    import trainer  # noqa: F401  registers what the library makes bindable
    from trainer.errors import UserError

    # TF_CONFIG with several workers is refused by the comparison, once the strategy says so.
    command_line.load_config()
    options = {name: flags.FLAGS[name].value for name in ("parallel", "only", "dry_run")}
    if not options["dry_run"]:
        command_line.required_model_dir()
    if options["only"] and options["dry_run"]:
        raise UserError("--only makes a run and --dry_run makes none; give one of them.")
    if options["parallel"] and flags.FLAGS.strategy == "multi_worker":
        raise UserError("--parallel: the runs of a comparison are processes of their own, not workers of one run.")
    starts_others = options["parallel"] and not options["only"] and not options["dry_run"]
    if starts_others:
        # The runs need the GPUs and the data; this process neither.
        tf.config.set_visible_devices([], "GPU")
        options["source_data"] = None
    command = [sys.executable, "-m", "launch.compare", *sys.argv[1:]]
    return gin.get_configurable("comparison.compare")(
        model_dir=flags.FLAGS.model_dir,
        strategy=None if starts_others else command_line.strategy_from_flags(),
        command=command,
        **options,
    )


if __name__ == "__main__":
    command_line.run(main, resumes=True)
