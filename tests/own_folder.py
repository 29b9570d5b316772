"""Runs the commands from a folder of the user's own, with `my.gin` and `my_model.py`."""

import json
from pathlib import Path

from commands import run_command


def dry_run_train_and_evaluate(folder: Path, config: str, model: str, *flags: str) -> tuple[str, float, float]:
    """(the dry run's text without line breaks, the run's last accuracy, the one that `launch.evaluate` prints)."""
    (folder / "my.gin").write_text(config)
    (folder / "my_model.py").write_text(model)
    command = ["launch.train", "--gin_file=my.gin", "--model_dir=run", *flags]
    dry = run_command(*command, "--dry_run", cwd=folder)
    assert dry.returncode == 0, dry.stderr
    assert not (folder / "run").exists()
    done = run_command(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "run/summary.json").read_text())
    evaluated = run_command("launch.evaluate", "--gin_file=my.gin", "--model_dir=run", cwd=folder)
    assert evaluated.returncode == 0, evaluated.stderr
    text = " ".join(dry.stdout.split())
    return text, summary["final_metrics"]["accuracy"], json.loads(evaluated.stdout)["accuracy"]
