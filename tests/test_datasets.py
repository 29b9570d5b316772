"""The digits that ship with the project, and any other TFDS data set: built, found, or refused at once."""

import socket
import sys

import numpy as np
import pytest
import scipy.ndimage
import sklearn.datasets
import tensorflow_datasets as tfds
from commands import REPOSITORY, start_command

import trainer
from trainer.data import tfds as reader


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def digits(data_dir):
    """(config, split) -> examples, each built once."""
    return {
        (config, split): trainer.tfds_data(f"handwritten_digits/{config}", split, data_dir=data_dir).examples
        for config in ("upright", "rotated")
        for split in ("train", "test")
    }


def pictures(examples) -> set[bytes]:
    return {image.tobytes() for image in examples["image"]}


def rotated(images, degrees: float) -> np.ndarray:
    return scipy.ndimage.rotate(images.astype(float)[..., 0], degrees, axes=(2, 1), reshape=False, order=1)


@pytest.mark.parametrize(
    ("config", "split", "count"),
    [("upright", "train", 1097), ("upright", "test", 600), ("rotated", "train", 100), ("rotated", "test", 600)],
)
def test_the_digits_come_as_small_grey_images_with_a_label(digits, config, split, count):
    examples = digits[config, split]
    assert examples["image"].shape == (count, 8, 8, 1) and examples["image"].dtype == np.uint8
    assert examples["label"].shape == (count,) and examples["label"].dtype == np.int64
    assert set(examples["label"]) == set(range(10))
    assert examples["image"].max() == 255 and examples["image"].min() == 0


def test_the_rotated_training_digits_are_ten_of_each_class(digits):
    assert np.bincount(digits["rotated", "train"]["label"]).tolist() == [10] * 10


def test_no_training_digit_is_in_a_test_split_turned_or_not(digits):
    images = sklearn.datasets.load_digits().images
    assert len(pictures(digits["upright", "train"]) | pictures(digits["upright", "test"])) == 1697, "all differ"
    assert len({image.tobytes() for image in images}) == 1797
    assert not pictures(digits["upright", "train"]) & pictures(digits["upright", "test"])
    assert not pictures(digits["rotated", "train"]) & pictures(digits["rotated", "test"])
    turned = np.clip(np.round(rotated(digits["upright", "train"]["image"], 30.0)), 0, 255).astype(np.uint8)
    assert not {image.tobytes() for image in turned[..., None]} & pictures(digits["rotated", "train"])


def test_the_rotated_digits_are_the_upright_ones_turned_by_thirty_degrees_counter_clockwise(digits):
    upright, turned = digits["upright", "test"], digits["rotated", "test"]
    assert upright["label"].tolist() == turned["label"].tolist()

    def likeness(images) -> float:
        return np.corrcoef(images.ravel(), upright["image"].ravel())[0, 1]

    back = {degrees: likeness(rotated(turned["image"], degrees)) for degrees in (-45, -30, -15, 0, 30)}
    assert max(back, key=back.__getitem__) == -30
    assert back[-30] > back[0] + 0.1


def test_the_pixels_are_those_of_scikit_learn(digits):
    ours = pictures(digits["upright", "train"])
    images = sklearn.datasets.load_digits().images[:1097]
    assert ours == {np.round(image / 16.0 * 255.0).astype(np.uint8)[..., None].tobytes() for image in images}


def test_two_processes_may_build_the_same_data_set_for_the_first_time_at_once(tmp_path):
    paths = f"{REPOSITORY / 'tests'}:{REPOSITORY}"
    both = [start_command("test_datasets", str(tmp_path), PYTHONPATH=paths) for _ in range(2)]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == ["100", "100"]


class TestPreparedElsewhere:
    """A data set whose code is nowhere, only its files."""

    @pytest.fixture(scope="class")
    def prepared(self, tmp_path_factory):
        folder = str(tmp_path_factory.mktemp("prepared"))
        with tfds.core.registered.skip_registration():

            class TinyNumbers(tfds.core.GeneratorBasedBuilder):
                """Ten numbers."""

                VERSION = tfds.core.Version("1.0.0")

                def _info(self):
                    features = {"x": np.int64, "name": tfds.features.Text()}
                    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

                def _split_generators(self, dl_manager):
                    return {"train": ((i, {"x": i, "name": str(i)}) for i in range(10))}

                def _generate_examples(self):
                    raise AssertionError("not used")

        TinyNumbers(data_dir=folder).download_and_prepare()
        return folder

    def test_it_is_read_by_its_name_and_folder(self, prepared):
        data = trainer.tfds_data("tiny_numbers", "train", data_dir=prepared)
        assert data.num_examples == 10
        assert sorted(data.examples["x"].tolist()) == list(range(10))

    def test_parts_of_a_split_are_read(self, prepared):
        parts = [trainer.tfds_data("tiny_numbers", part, data_dir=prepared) for part in ("train[:80%]", "train[80%:]")]
        assert [part.num_examples for part in parts] == [8, 2]
        assert not set(parts[0].examples["x"]) & set(parts[1].examples["x"])

    def test_texts_are_left_out_for_no_accelerator_takes_them(self, prepared):
        assert list(trainer.tfds_data("tiny_numbers", "train", data_dir=prepared).examples) == ["x"]

    def test_without_its_folder_it_is_unknown(self):
        with pytest.raises(trainer.UserError, match="There is no TFDS data set 'tiny_numbers'"):
            trainer.tfds_data("tiny_numbers", "train")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tfds_name": "mnsit"}, r"no TFDS data set 'mnsit'.*Did you mean 'mnist'\?"),
        ({"tfds_name": "handwriten_digits/rotated"}, "Did you mean 'handwritten_digits'?"),
        (
            {"tfds_name": "handwritten_digits/rotatd"},
            "handwritten_digits has no config 'rotatd'. Did you mean 'rotated'?",
        ),
        ({"tfds_name": "handwritten_digits/rotated:9.9.9"}, "cannot be loaded at version 9.9.9, only: 1.0.0"),
        ({"split": "trian"}, "no split 'trian'; it has test, train.* Did you mean 'train'?"),
        ({"split": "train[:x]"}, r"no split 'train\[:x\]'"),
        ({"split": "train[:0]"}, r"train\[:0\] is empty"),
        ({"features": ["imag"]}, "no feature 'imag'; it has image, label. Did you mean 'image'?"),
    ],
)
def test_what_is_not_there_is_named_together_with_what_is(data_dir, changed, message):
    arguments = {"tfds_name": "handwritten_digits/rotated", "split": "train", "data_dir": data_dir} | changed
    with pytest.raises(trainer.UserError, match=message):
        trainer.tfds_data(**arguments)


def test_a_data_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(trainer.UserError, match="file/tfds.*cannot be written: Not a directory"):
        trainer.tfds_data("handwritten_digits/rotated", "train", data_dir=str(tmp_path / "file/tfds"))


def test_a_known_data_set_that_is_not_prepared_says_so_in_one_line_and_asks_no_network(tmp_path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *unused, **more: asked.append(host) or [])
    with pytest.raises(trainer.UserError) as caught:
        reader.open_split("mnist", "train", str(tmp_path), download=False, features=None, prepare=None)
    assert "\n" not in str(caught.value) and asked == []
    assert f"mnist is not prepared in {tmp_path}" in str(caught.value)
    assert "tfds_data.download = True" in str(caught.value)


def test_a_download_without_a_network_says_so_at_once_instead_of_trying_for_minutes(tmp_path, monkeypatch):
    def no_network(*unused):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(reader.socket, "getaddrinfo", no_network)
    monkeypatch.setattr(reader.urllib.request, "getproxies", dict)
    with pytest.raises(trainer.UserError, match="there is no network to download it from.*Name or service not known"):
        trainer.tfds_data("mnist", "train", data_dir=str(tmp_path), download=True)


if __name__ == "__main__":
    print(trainer.tfds_data("handwritten_digits/rotated", "train", data_dir=sys.argv[1]).num_examples)
