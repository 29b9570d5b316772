"""Everything that does not fit stops the restore before a variable changes, unless a rule excuses it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_strategy
from zoo import FOUR, TwoDense, built, functional, layers, saved, sequential, used_adam, values

import trainer
from trainer.restore import open_checkpoint
from trainer.restore.apply import apply_plan
from trainer.restore.matching.plan import plan_restore
from trainer.restore.matching.rules import Rules


def refused(model, path, **rules) -> trainer.RestoreError:
    """The error of a restore that must be refused and must leave the model's variables alone."""
    before = values(model)
    with pytest.raises(trainer.RestoreError) as caught:
        trainer.restore_weights(model, path, **rules)
    assert values(model) == before
    return caught.value


class Renamed(keras.Model):
    """As TwoDense, with `backbone` for `encoder`."""

    def __init__(self):
        super().__init__()
        self.backbone = layers.Dense(4)
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.backbone(x))


class Wrapped(keras.Model):
    """A functional or other model under a name, and nothing else."""

    def __init__(self, name: str, inner: keras.Model):
        super().__init__()
        self.part = name
        setattr(self, name, inner)

    def call(self, x):
        return getattr(self, self.part)(x)


@pytest.fixture
def source():
    return built(TwoDense())


@pytest.fixture
def model():
    return built(TwoDense(), seed=2)


@pytest.fixture
def path(source, tmp_path):
    return saved(tmp_path, model=source, optimizer=used_adam(source))


def test_an_unbuilt_model_without_a_spec_is_refused_and_shown_how_to_give_one(path):
    with pytest.raises(trainer.RestoreError, match=r"is not built.*input_spec=tf.TensorSpec"):
        trainer.restore_weights(TwoDense(), path)


def test_a_spec_that_the_model_cannot_be_called_on_is_named(path):
    model = TwoDense()
    model.encoder = layers.Conv2D(4, 3)
    with pytest.raises(trainer.RestoreError, match=r"can't be built from inputs float32\[None, 4\]") as caught:
        trainer.restore_weights(model, path, input_spec=FOUR)
    assert "Traceback" not in str(caught.value)


def test_a_layer_that_is_called_in_training_only_is_built_too(tmp_path):
    class Auxiliary(TwoDense):
        def call(self, x, training=None):
            return self.head(self.encoder(x)) if training else self.encoder(x)

    source = Auxiliary()
    source(tf.zeros([2, 4]), training=True)
    model = Auxiliary()
    trainer.restore_weights(model, saved(tmp_path, model=source), input_spec=FOUR)
    assert values(model) == values(source)


def test_a_layer_that_is_never_called_is_named(path):
    model = TwoDense()
    model.extra = layers.Dense(2, name="forgotten")
    with pytest.raises(trainer.RestoreError, match="still has layers without variables: forgotten"):
        trainer.restore_weights(model, path, input_spec=FOUR)


def test_a_layer_of_the_users_without_weights_need_not_be_called(source, path):
    class Nothing(keras.Layer):
        def call(self, x):
            return x

    model = TwoDense()
    model.nothing = Nothing()
    trainer.restore_weights(model, path, input_spec=FOUR)
    assert values(model) == values(source)


def test_a_model_called_on_a_dictionary_is_built_from_one(tmp_path):
    class Pair(TwoDense):
        def call(self, inputs):
            return self.head(self.encoder(inputs["left"]) + inputs["right"])

    source = Pair()
    source({"left": tf.zeros([2, 4]), "right": tf.zeros([2, 4])})
    model = Pair()
    trainer.restore_weights(model, saved(tmp_path, model=source), input_spec={"left": FOUR, "right": FOUR})
    assert values(model) == values(source)


def test_another_number_of_classes_is_mismatched_and_the_message_shows_both_shapes(path):
    model = built(TwoDense(num_classes=5), seed=2)
    error = refused(model, path)
    assert [record.name for record in error.report.mismatched] == ["head/kernel", "head/bias"]
    assert "head/kernel  model (4, 5) float32, checkpoint (4, 2) float32" in str(error)
    assert "  Restore.reinitialize = ['^head/']" in str(error)


def test_the_line_of_gin_that_the_message_proposes_works(source, path):
    model = built(TwoDense(num_classes=5), seed=2)
    fresh_head = model.head.kernel.numpy()
    report = trainer.restore_weights(model, path, reinitialize=["^head/"])
    assert [record.name for record in report.reinitialized] == ["head/kernel", "head/bias"]
    assert {record.rule for record in report.reinitialized} == {"^head/"}
    assert np.array_equal(model.head.kernel.numpy(), fresh_head)
    assert np.array_equal(model.encoder.kernel.numpy(), source.encoder.kernel.numpy())


def test_a_proposed_rule_covers_what_is_wrong_and_nothing_that_fits(source, tmp_path):
    model = built(TwoDense(), seed=2)
    path = saved(tmp_path, encoder=source.encoder, head=tf.train.Checkpoint(kernel=source.head.kernel.value))
    error = refused(model, path)
    assert "Restore.reinitialize = ['^head/bias$']" in str(error)
    report = trainer.restore_weights(model, path, reinitialize=["^head/bias$"])
    assert len(report.restored) == 3


def test_a_missing_layer_is_refused(source, model, tmp_path):
    error = refused(model, saved(tmp_path, encoder=source.encoder))
    assert [record.name for record in error.report.missing] == ["head/kernel", "head/bias"]
    assert "2 of 4 model variables would be missing" in str(error)


def test_a_weight_that_no_variable_takes_is_refused_unless_ignored(source, model, tmp_path):
    pooler = built(keras.Sequential([layers.Dense(3)]))
    path = saved(tmp_path, model=source, pooler=pooler.layers[0])
    error = refused(model, path)
    assert [record.name for record in error.report.unused] == ["pooler/kernel", "pooler/bias"]
    assert "  Restore.ignore = ['^pooler/']" in str(error)
    report = trainer.restore_weights(model, path, ignore=["^pooler/"])
    assert values(model) == values(source)
    assert [(record.name, record.rule) for record in report.unused] == [
        ("pooler/kernel", "^pooler/"), ("pooler/bias", "^pooler/"),
    ]  # fmt: skip


def test_everything_may_be_ignored_and_what_fits_is_still_restored(source, model, tmp_path):
    pooler = built(keras.Sequential([layers.Dense(3)]))
    trainer.restore_weights(model, saved(tmp_path, model=source, pooler=pooler.layers[0]), ignore=[".*"])
    assert values(model) == values(source)


def test_one_tensor_of_the_file_does_not_fill_two_variables(source, model, tmp_path):
    source.head = source.encoder
    error = refused(model, saved(tmp_path, model=source))
    assert [record.name for record in error.report.missing] == ["head/kernel", "head/bias"]


@pytest.mark.parametrize("spec", [(None, 4), [tf.TensorSpec(None)], "images"], ids=str)
def test_a_spec_that_is_none_is_named(spec, path):
    with pytest.raises(trainer.RestoreError, match=r"^input_spec is .*it takes a tf\.TensorSpec of known rank"):
        trainer.restore_weights(TwoDense(), path, input_spec=spec)


def test_a_model_of_something_else_is_refused(path):
    with pytest.raises(trainer.RestoreError, match="weights go into models of Keras 3"):
        trainer.restore_weights(tf.Module(), path)


def test_an_optimizer_alone_is_refused(source, model, tmp_path):
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build([tf.Variable(tf.zeros([4, 4]))])
    del optimizer._trainable_variables  # as a file whose graph does not lead to the weights
    error = refused(model, saved(tmp_path, optimizer=optimizer))
    assert "fits no variable of the model: 0 of 4" in str(error)
    assert "no weights, only" in str(error)
    assert "Restore.reinitialize" not in str(error)


def test_an_optimizer_s_list_of_weights_is_not_matched_by_position(source, model, tmp_path):
    error = refused(model, saved(tmp_path, optimizer=used_adam(source)))
    assert "fits no variable of the model" in str(error)
    assert [record.name for record in error.report.unused] == [f"optimizer/trainable_variables/{i}" for i in range(4)]


def test_nothing_of_the_optimizer_is_read(model, path):
    report = trainer.restore_weights(model, path)
    assert len(report.optimizer_keys) == 2 + 2 * 4
    assert report.optimizer_keys_read == 0
    assert report.bytes_read == 4 * (16 + 4 + 8 + 2)
    assert report.counter_keys == ["save_counter/.ATTRIBUTES/VARIABLE_VALUE"]


def test_a_checkpoint_of_another_model_fits_nothing_and_no_excuse_is_proposed(model, tmp_path):
    error = refused(model, saved(tmp_path, weights=[tf.Variable(tf.zeros([9])), tf.Variable(tf.zeros([8]))]))
    assert "fits no variable of the model: 0 of 4 would be restored, and none was changed" in str(error)
    assert "the checkpoint has  weights/0, weights/1" in str(error)
    assert "reinitialize" not in str(error)
    assert "ignore" not in str(error)


@pytest.mark.parametrize(
    "rules",
    [
        {"rename": [("(", "x")]},
        {"reinitialize": ["*head"]},
        {"ignore": ["[a"]},
        {"rename": [("^a/", r"\2")]},
        {"rename": ["^a/"]},
        {"rename": [(None, "a")]},
        {"reinitialize": "^head/"},
    ],
    ids=str,
)
def test_a_bad_rule_is_named(rules, model, path):
    (what,) = rules
    assert str(refused(model, path, **rules)).startswith(what)


@pytest.mark.parametrize(
    ("pattern", "nearest"), [("^hed/", "'^head/'"), ("^head/kernl", "'^head/kernel$'"), ("^encodr/", "'^encoder/'")]
)
def test_a_fresh_start_of_something_that_is_not_there_names_the_nearest(pattern, nearest, model, path):
    message = str(refused(model, path, reinitialize=[pattern]))
    assert f"matches no variable of the model. Did you mean {nearest}?" in message
    assert "Its variables: encoder/kernel, encoder/bias, head/kernel, head/bias." in message


@pytest.mark.parametrize("pattern", ["^backbone/", "^model/backbone/"])
def test_a_prefix_is_renamed_as_seen_from_the_model_or_from_the_top(pattern, tmp_path):
    source, model = built(Renamed()), built(TwoDense(), seed=2)
    path = saved(tmp_path, model=source, optimizer=used_adam(source))
    refused(model, path)
    report = trainer.restore_weights(model, path, rename=[(pattern, "encoder/")])
    assert values(model) == values(source)
    assert {record.name: record.rule for record in report.restored} == {
        "encoder/kernel": "rename", "encoder/bias": "rename", "head/kernel": "", "head/bias": "",
    }  # fmt: skip


def test_the_message_proposes_the_rename_that_is_likely_meant(tmp_path):
    source, model = built(Renamed()), built(TwoDense(), seed=2)
    path = saved(tmp_path, model=source)
    message = str(refused(model, path))
    assert "  Restore.rename = [('^backbone/', 'encoder/')]" in message
    trainer.restore_weights(model, path, rename=[("^backbone/", "encoder/")])
    assert values(model) == values(source)


@pytest.mark.parametrize("inner", [functional, sequential])
def test_a_renamed_part_brings_its_layers_by_structure(inner, tmp_path):
    source = built(Wrapped("backbone", inner()))
    model = built(Wrapped("encoder", inner()), seed=2)
    path = saved(tmp_path, model=source, optimizer=used_adam(source))
    trainer.restore_weights(model, path, rename=[("^backbone/", "encoder/")])
    assert values(model) == values(source)


def test_a_backbone_alone_goes_into_a_larger_model(source, tmp_path):
    model = built(TwoDense(), seed=2)
    path = saved(tmp_path, net=source.encoder)
    report = trainer.restore_weights(model, path, rename=[("^net/", "encoder/")], reinitialize=["^head/"])
    assert len(report.restored) == 2
    assert np.array_equal(model.encoder.kernel.numpy(), source.encoder.kernel.numpy())


def test_a_renamed_weight_does_not_come_in_by_its_old_place(source, model, tmp_path):
    path = saved(tmp_path, model=source)
    error = refused(model, path, rename=[("^head/", "elsewhere/")])
    assert [record.name for record in error.report.missing] == ["head/kernel", "head/bias"]


def test_a_model_and_its_ema_copy_are_ambiguous_and_doing_what_the_message_says_works(tmp_path):
    for build in (TwoDense, functional):
        source, ema = built(build()), built(build(), seed=3)
        path = saved(tmp_path, model=source, ema=ema, optimizer=used_adam(source))
        model = built(build(), seed=2)
        message = str(refused(model, path))
        assert "holds 2 things that fit the model equally well" in message
        assert f"{len(model.weights)} of {len(model.weights)} variables each: ema, model" in message
        assert "ema, model" in message
        assert "Say which one is meant:\n  Restore.root = 'ema'" in message
        report = trainer.restore_weights(model, path, root="ema")
        assert values(model) == values(ema)
        assert {record.rule for record in report.unused} == {"root = 'ema'"}
        trainer.restore_weights(model, path, root="model")
        assert values(model) == values(source)
        trainer.restore_weights(model, path, ignore=["^model/"])
        assert values(model) == values(ema)


def test_a_root_that_is_not_there_is_refused_with_what_is(model, path):
    message = str(refused(model, path, root="modle"))
    assert "holds no object at 'modle'. Did you mean 'model'?" in message
    assert "At its top: model" in message


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_between_floats_is_made_and_reported(dtype, source, path):
    model = built(TwoDense(dtype=dtype), seed=2)
    report = trainer.restore_weights(model, path)
    assert {record.note for record in report.restored} == {f"cast from float32 to {dtype}"}
    expected = source.head.kernel.numpy().astype(tf.as_dtype(dtype).as_numpy_dtype)
    assert model.head.kernel.numpy().tobytes() == expected.tobytes()
    assert f"cast from float32 to {dtype} (4)" in str(report)


def test_a_value_too_large_for_the_narrower_float_is_refused(source, tmp_path):
    source.head.bias.assign([1.0, 1e6])
    model = built(TwoDense(dtype="float16"), seed=2)
    message = str(refused(model, saved(tmp_path, model=source)))
    assert "head/bias: 1 of 2 values are too large for float16" in message


def test_integers_do_not_become_floats(model, source, tmp_path):
    integers = tf.train.Checkpoint(kernel=tf.Variable(tf.ones([4, 2], tf.int8)), bias=tf.Variable([0.0, 0.0]))
    error = refused(model, saved(tmp_path, encoder=source.encoder, head=integers))
    (record,) = error.report.mismatched
    assert (record.name, record.dtype, record.checkpoint_dtype) == ("head/kernel", "float32", "int8")


def test_a_plan_reads_and_changes_nothing(model, path):
    from trainer.restore import plan_weights

    before = values(model)
    report = plan_weights(model, path)
    assert values(model) == before
    assert (len(report.restored), report.bytes_read, report.replicas_verified) == (4, 0, 0)


def test_the_report_can_be_read_by_a_person(model, path):
    report = trainer.restore_weights(model, path)
    assert str(report).splitlines() == [
        f"{path}  (TensorFlow object checkpoint)",
        "written by       Keras 3",
        "optimizer        Adam or a kin, by its slots momentums, velocities",
        "checksums        CRC-32C of every tensor",
        "restored        4  encoder/** (2), head/** (2)",
        "                   by path 4",
        "reinitialized   0",
        "mismatched      0",
        "missing         0",
        "unused          0",
        "not read         entries that are no weights: optimizer 10, counters 1, other 0",
        "verified         4 variables on 1 replica, 120 bytes read, 0 of the optimizer's entries read",
    ]


def test_the_report_can_be_read_by_a_program(model, path):
    report = json.loads(trainer.restore_weights(model, path).to_json())
    assert report["counts"] == {"restored": 4, "reinitialized": 0, "mismatched": 0, "missing": 0, "unused": 0}
    first = report["records"][0]
    assert first.pop("checksum").startswith("crc32c:")
    assert first == {
        "name": "encoder/kernel",
        "status": "restored",
        "key": "model/encoder/_kernel/.ATTRIBUTES/VARIABLE_VALUE",
        "shape": [4, 4],
        "dtype": "float32",
        "checkpoint_shape": [4, 4],
        "checkpoint_dtype": "float32",
        "rule": "",
        "likely_home": "",
        "note": "",
        "paired": "by path",
        "not_finite": 0,
    }
    assert (report["optimizer_keys_read"], report["replicas_verified"]) == (0, 1)


def test_a_counter_and_a_rate_beside_the_model_do_not_make_the_file_an_optimizer(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    model.build((None, 3))
    path = tf.train.Checkpoint(model=model, iter=tf.Variable(3), learning_rate=tf.Variable(0.1)).save(
        str(tmp_path / "ckpt")
    )
    other = keras.Sequential([keras.layers.Dense(2)])
    other.build((None, 3))
    report = trainer.restore_weights(other, path, ignore=["^learning_rate$"])
    assert len(report.restored) == 2
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])


def test_a_model_of_bare_weights_beside_a_counter_and_a_rate_is_no_optimizer(tmp_path):
    class Bare(keras.Model):
        def __init__(self):
            super().__init__()
            self.w = self.add_weight(shape=(2,), initializer="ones", name="w")

        def call(self, x):
            return x * self.w

    source, target = Bare(), Bare()
    source.w.assign([3.0, 4.0])
    path = tf.train.Checkpoint(model=source, iter=tf.Variable(1), learning_rate=tf.Variable(0.1)).save(
        str(tmp_path / "ckpt")
    )
    trainer.restore_weights(target, path, ignore=["^learning_rate$"], input_spec=tf.TensorSpec([None, 2]))
    np.testing.assert_array_equal(target.w.numpy(), [3.0, 4.0])


def test_a_file_that_is_all_optimizer_is_refused_in_words(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    model.build((None, 3))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    path = tf.train.Checkpoint(root=optimizer).save(str(tmp_path / "ckpt"))
    with pytest.raises(trainer.RestoreError, match="holds the state of an optimizer|fits no variable of the model"):
        trainer.restore_weights(model, path)


def test_a_plain_tf_variable_in_a_layer_is_named_instead_of_being_lost(tmp_path):
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(0.0)
            self.unit = keras.layers.Dense(1)

        def call(self, x):
            return self.unit(x) * self.scale

    source = Plain()
    source(np.zeros([1, 2], np.float32))
    path = tf.train.Checkpoint(model=source).save(str(tmp_path / "ckpt"))
    with pytest.raises(trainer.RestoreError, match="scale is a plain tf.Variable"):
        trainer.restore_weights(Plain(), path, input_spec=tf.TensorSpec([None, 2]))


def test_a_read_of_an_optimizers_entry_is_counted(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    model.build((None, 3))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).save(str(tmp_path / "ckpt"))
    source = open_checkpoint(path)
    plan = plan_restore(model, source, Rules())
    source.read(source.of_kind("optimizer")[0])
    apply_plan(plan, source)
    assert plan.report.optimizer_keys_read == 1


def test_a_replica_whose_copy_differs_after_the_restore_stops_it(tmp_path):
    strategy = make_strategy(2)
    source = keras.Sequential([keras.layers.Dense(2)])
    source.build((None, 3))
    path = tf.train.Checkpoint(model=source).save(str(tmp_path / "ckpt"))
    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(2)])
        model.build((None, 3))
        kernel = model.weights[0]
        write_all = kernel.assign

        def write_and_damage_the_second_copy(value):
            write_all(value)
            strategy.experimental_local_results(kernel.value)[1].assign(value + 1.0)

        kernel.assign = write_and_damage_the_second_copy
        with pytest.raises(trainer.RestoreError, match="differs from the checkpoint on replica 1"):
            trainer.restore_weights(model, path)
