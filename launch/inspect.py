"""Shows what is in a checkpoint; with a config, also how it would be restored into the config's model.

python -m launch.inspect --checkpoint=runs/digits_source [--gin_file=configs/runs/digits_adam_to_sgd.gin]

Nothing is changed and nothing is trained. Exit status: 0 done; 2 a mistake in flags, config or
checkpoint, or a restore that would be refused; 1 a bug.
"""

from absl import flags

from launch import command_line

command_line.define_config_flags()
flags.adopt_module_key_flags(command_line)
flags.DEFINE_string("checkpoint", None, "Prefix, folder of checkpoints, model_dir, SavedModel or file of weights.")


def main() -> None:
    import trainer  # noqa: F401  registers what the library makes bindable
    from trainer.config import bindings_of, settings_of
    from trainer.errors import UserError
    from trainer.restore import RULES, describe_source, find_checkpoint, open_checkpoint
    from trainer.run import evaluate_checkpoint

    if not flags.FLAGS.checkpoint:
        raise UserError("--checkpoint is missing: it names the checkpoint to look into.")
    path = find_checkpoint(flags.FLAGS.checkpoint)
    if flags.FLAGS.gin_file:
        command_line.load_config()
    print(describe_source(open_checkpoint(path)))
    if not flags.FLAGS.gin_file:
        return
    bound = bindings_of("train", "model", "task", "train_data") | settings_of("restore", *RULES)
    print("\n" + str(evaluate_checkpoint.plan_only(path, **bound)))


if __name__ == "__main__":
    command_line.run(main)
