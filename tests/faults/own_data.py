"""Data of a user's own, which differ where the environment says so."""

import os

import gin
import numpy as np

import trainer


@gin.register
def own_data():
    images = np.zeros([64, 8, 8, 1], np.uint8)
    images[0, 0, 0, 0] = int(os.environ.get("OWN_DATA", "0"))
    return trainer.in_memory(
        examples={"image": images, "label": np.zeros([64], np.int64)}, preprocess=trainer.scale_image
    )
