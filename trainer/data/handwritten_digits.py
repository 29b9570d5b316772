"""The 1,797 real handwritten digits that ship inside scikit-learn, as a TFDS data set.

Two configs make a transfer task that has a meaning: `upright` has many examples of digits as they
were written; `rotated` has few, turned by 30 degrees. No digit of one split is in another, turned
or not, but for the two test splits, which show the same digits so that forgetting can be measured.
"""

import dataclasses

import numpy as np
import scipy.ndimage
import sklearn.datasets
import tensorflow_datasets as tfds

NUM_SOURCE_EXAMPLES = 1097
TARGET_EXAMPLES_PER_CLASS = 10
ROTATION_DEGREES = 30.0


@dataclasses.dataclass(kw_only=True)
class DigitsConfig(tfds.core.BuilderConfig):
    """degrees: how far every image is turned, counter-clockwise.
    few: ten training examples a class.
    """

    degrees: float = 0.0
    few: bool = False


class HandwrittenDigits(tfds.core.GeneratorBasedBuilder):
    """8 x 8 grey images of ten digits; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    NEEDS_NETWORK = False
    BUILDER_CONFIGS = [
        DigitsConfig(name="upright", description="1,097 training digits as they were written."),
        DigitsConfig(
            name="rotated",
            description="100 training digits, ten a class, turned by 30 degrees.",
            degrees=ROTATION_DEGREES,
            few=True,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8, doc="0 (paper) to 255 (ink)"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            citation="Alpaydin, E., Kaynak, C. (1998). Optical Recognition of Handwritten Digits. UCI.",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # scikit-learn has the data
        labels = sklearn.datasets.load_digits().target
        pool = np.arange(NUM_SOURCE_EXAMPLES, len(labels))
        few = np.sort(np.concatenate([pool[labels[pool] == digit][:TARGET_EXAMPLES_PER_CLASS] for digit in range(10)]))
        train = few if self.builder_config.few else np.arange(NUM_SOURCE_EXAMPLES)
        return {
            "train": self._generate_examples(train),
            "test": self._generate_examples(np.setdiff1d(pool, few)),
        }

    def _generate_examples(self, indices):
        digits = sklearn.datasets.load_digits()
        for index in indices:
            image = digits.images[index] / 16.0
            if self.builder_config.degrees:
                image = scipy.ndimage.rotate(image, self.builder_config.degrees, reshape=False, order=1)
            pixels = np.clip(np.round(image * 255.0), 0, 255).astype(np.uint8)
            yield int(index), {"image": pixels[..., None], "label": int(digits.target[index])}
