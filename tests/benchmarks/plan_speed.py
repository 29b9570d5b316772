"""Plans the restore of a model of 5,000 variables that was saved with Adam: seconds beyond building the model.

python tests/benchmarks/plan_speed.py [--variables=5000]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from trainer.restore import plan_weights  # noqa: E402


class Many(keras.Model):
    """As many small layers as are asked for, each an attribute."""

    def __init__(self, count: int):
        super().__init__()
        for index in range(count):
            setattr(self, f"dense{index}", keras.layers.Dense(2))

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variables", type=int, default=5000)
    model = Many(parser.parse_args().variables // 2)
    started = time.perf_counter()
    model(tf.zeros([1, 2]))
    print(f"building the model        {time.perf_counter() - started:.2f} s")
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(model=model, optimizer=optimizer).write(os.path.join(folder, "ckpt"))
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            report = plan_weights(model, path)
            seconds.append(time.perf_counter() - started)
    print(f"planning {len(report.restored):,} variables  {statistics.median(seconds):.2f} s  (asked: less than 1)")


if __name__ == "__main__":
    main()
