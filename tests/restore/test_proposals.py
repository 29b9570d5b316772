"""Every line that a refusal proposes is read by gin, and restores when it is pasted, or leaves what it says."""

import keras
import numpy as np
import pytest
from conftest import full
from pasting import Stack, Words, image_model, named, paste_all, refusal, written_by_tf1
from test_zoo import KINDS, LISTS, OBJECT_GRAPHS, WITH_PATHS, WRITERS
from zoo import TOKENS, InLists, Plain, TwoDense, built, layers, saved, used_adam, values

import trainer


def refusing_cells():
    for writer in WRITERS:
        for kind in KINDS:
            if kind == "MobileNetV2" or (writer != ".npz, a list" and writer in LISTS and kind in WITH_PATHS):
                continue
            if (kind == "layers in lists" and writer in OBJECT_GRAPHS) or writer in LISTS:
                usual = (writer, kind) in (("model.export", "subclassed"), (OBJECT_GRAPHS[1], "layers in lists"))
                yield pytest.param(writer, kind, marks=() if usual else pytest.mark.full, id=f"{writer}-{kind}")


@pytest.mark.parametrize(("writer", "kind"), refusing_cells())
def test_what_is_proposed_in_the_zoo_works_when_pasted(writer, kind, tmp_path):
    build, spec = KINDS[kind]
    source = built(build(), spec)
    path = WRITERS[writer](tmp_path, source)
    fresh = lambda: built(build(), spec, seed=2)  # noqa: E731
    for proposal, model in paste_all(fresh, path, refusal(fresh(), path)):
        if "reinitialize" not in proposal:
            assert values(model) == values(source)


@pytest.mark.parametrize(
    ("build", "theirs", "ours", "place"),
    [
        (lambda count: built(TwoDense(count)), 2, 5, "^head/"),
        (lambda count: built(Words(count), TOKENS), 5, 7, "^embed/"),
        (image_model, 3, 4, "^conv/kernel$"),
        (lambda count: built(TwoDense(count)), 5, 3, "^head/"),
    ],
    ids=["classes", "tokens", "channels", "fewer classes"],
)
def test_one_axis_that_differs_is_grown_copied_or_fresh(build, theirs, ours, place, tmp_path):
    path = saved(tmp_path, model=build(theirs))
    pasted = paste_all(lambda: build(ours), path, refusal(build(ours), path))
    grown = [{"grow": [place]}] * (ours > theirs)
    assert [proposal for proposal, _ in pasted] == [
        *grown, {"copy_rows": [(place, {0: 0, 1: 1})]}, {"reinitialize": [place]},
    ]  # fmt: skip


def test_several_axes_that_differ_are_neither_grown_nor_copied(tmp_path):
    path = saved(tmp_path, model=built(Words(5, 4), TOKENS))
    message = refusal(built(Words(7, 8), TOKENS), path)
    assert [set(proposal) for proposal, _ in paste_all(lambda: built(Words(7, 8), TOKENS), path, message)] == [
        {"grow", "reinitialize"}, {"copy_rows", "reinitialize"}, {"reinitialize"},
    ]  # fmt: skip
    assert "Restore.grow = ['^head/kernel$']" in message


def test_rules_that_are_there_already_stay_in_the_proposed_lines(tmp_path):
    parts = {name: built(keras.Sequential([layers.Dense(3)])).layers[0] for name in ("pooler", "other")}
    path = saved(tmp_path, model=built(TwoDense()), **parts)
    message = refusal(built(TwoDense()), path, ignore=["^other/"])
    assert "leaves 0 of 2 problems:\n  Restore.ignore = ['^other/', '^pooler/']" in message
    paste_all(lambda: built(TwoDense()), path, message, ignore=["^other/"])


@pytest.mark.parametrize(
    ("theirs", "ours", "rename"),
    [
        (["layers_0", "layers_1", "layers_2"], ["layer_0", "layer_1", "layer_2"], r"('^model/layers_(\\d+)/', "),
        (["query_dense", "key_dense"], ["query", "key"], "[('^model/query_dense/', 'query/'), ('^model/key_dense/', "),
        (["first", "old_head"], ["first", "head"], "[('^old_head/', 'head/')]"),
        full(["first", "backbone_1"], ["first", "backbone_3"], "[('^backbone_1/', 'backbone_3/')]"),
    ],
)
def test_layers_under_other_names_are_renamed(theirs, ours, rename, tmp_path):
    source = built(Stack(*theirs))
    path = saved(tmp_path, model=source)
    message = refusal(built(Stack(*ours)), path)
    assert f"Restore.rename = {rename}" in message or f"Restore.rename = [{rename}" in message
    ((_, model),) = paste_all(lambda: built(Stack(*ours), seed=2), path, message)
    assert values(model) == values(source)


def test_averages_beside_the_weights_are_left_behind_or_taken(tmp_path):
    source, averages = built(TwoDense()), built(TwoDense(), seed=3)
    raw = {f"net/{name}": value for name, value in named(source).items()}
    means = {f"net/{name}": value for name, value in named(averages, "/ExponentialMovingAverage").items()}
    path = written_by_tf1(tmp_path, raw | means)
    message = refusal(built(TwoDense(), seed=2), path)
    assert "each of these leaves 0 of 4 problems" in message
    assert "  Restore.ignore = ['/ExponentialMovingAverage$']" in message
    pasted = paste_all(lambda: built(TwoDense(), seed=2), path, message)
    assert [values(model) for _, model in pasted] == [values(source), values(averages)]


def test_averages_of_some_weights_are_taken_for_these(tmp_path):
    source, averages = built(Plain()), built(Plain(), seed=3)
    means = {f"{name}_ema": value for name, value in named(averages).items() if "moving" not in name}
    slots = {f"{name}/other_slot": value for name, value in named(source).items()}
    path = written_by_tf1(tmp_path, named(source) | means | slots)
    pasted = paste_all(lambda: built(Plain(), seed=2), path, refusal(built(Plain(), seed=2), path))
    assert [proposal["ignore"] for proposal, _ in pasted][0] == ["_ema$", "/other_slot$"]
    taken = named(pasted[1][1])
    for name, value in named(averages).items():
        np.testing.assert_array_equal(taken[name], named(source)[name] if "moving" in name else value)


@pytest.mark.parametrize("end", ["/ExponentialMovingAverage", full("_ema")])
def test_averages_alone_are_renamed(end, tmp_path):
    source = built(TwoDense())
    path = written_by_tf1(tmp_path, {f"net/{name}": value for name, value in named(source, end).items()})
    ((proposal, model),) = paste_all(lambda: built(TwoDense(), seed=2), path, refusal(built(TwoDense()), path))
    assert list(proposal) == ["rename"]
    assert values(model) == values(source)


@pytest.mark.parametrize("classes", [2, 5])
def test_each_of_several_whole_models_is_proposed_with_what_else_it_needs(classes, tmp_path):
    path = saved(tmp_path, model=built(TwoDense()), ema=built(TwoDense(), seed=3))
    message = refusal(built(TwoDense(classes)), path)
    assert "Each of these leaves 0 problems. Say which one is meant:\n" in message
    pasted = paste_all(lambda: built(TwoDense(classes), seed=2), path, message)
    assert [proposal["root"] for proposal, _ in pasted] == ["ema", "model"]


def test_names_that_fit_in_two_ways_are_proposed_in_both(tmp_path):
    class Crossed(keras.Model):
        def __init__(self):
            super().__init__(name="crossed")
            self.dense_1 = layers.Dense(4, name="dense")
            self.dense = layers.Dense(4, name="dense_1")

        def call(self, x):
            return self.dense(self.dense_1(x))

    source = built(Crossed())
    np.savez(tmp_path / "m.npz", **{weight.path.removeprefix("crossed/"): weight.numpy() for weight in source.weights})
    message = refusal(built(Crossed(), seed=2), tmp_path / "m.npz")
    pasted = paste_all(lambda: built(Crossed(), seed=2), tmp_path / "m.npz", message)
    assert values(source) in [values(model) for _, model in pasted]
    assert len(pasted) == 2 and values(pasted[0][1]) != values(pasted[1][1])


def test_the_order_is_proposed_where_names_are_numbers_of_another_order(tmp_path):
    """Keras numbers layers in the order in which the code makes them, here from the inside out and back."""

    def twice(inside_first: bool):
        keras.utils.clear_session()
        image = x = keras.Input([4])
        for _ in range(2):
            if inside_first:
                x = layers.Dense(4)(layers.Dense(4)(x))
            else:
                first, second = layers.Dense(4), layers.Dense(4)
                x = second(first(x))
        return built(keras.Model(image, x), seed=1 + inside_first)

    source = twice(inside_first=True)
    source.save(tmp_path / "m.h5")
    message = refusal(twice(inside_first=False), tmp_path / "m.h5")
    assert "# by the places in a list of the file, if the model was built by the same code" in message
    ((proposal, model),) = paste_all(lambda: twice(inside_first=False), tmp_path / "m.h5", message)
    assert proposal == {"match": "order"}
    assert values(model) == values(source)


def test_a_list_with_a_head_of_other_classes_is_taken_by_order_and_the_head_starts_fresh(tmp_path):
    source = built(Plain())
    np.savez(tmp_path / "m.npz", *source.get_weights())
    message = refusal(built(Plain(5)), tmp_path / "m.npz")
    ((proposal, model),) = paste_all(lambda: built(Plain(5), seed=2), tmp_path / "m.npz", message)
    assert proposal == {"match": "order", "reinitialize": ["^head/"]}
    assert values(model)[:6] == values(source)[:6]


def test_no_more_than_a_dozen_plans_are_tried_and_none_reads_a_tensor(tmp_path, monkeypatch):
    plans = []

    def counted(model, source, rules):
        plans.append(source)
        return plan(model, source, rules)

    plan = trainer.restore.plan_restore
    monkeypatch.setattr("trainer.restore.plan_restore", counted)
    source = built(InLists())
    path = saved(
        tmp_path, model=source, ema=built(InLists(), seed=3), pooler=layers.Dense(2), optimizer=used_adam(source)
    )
    refusal(built(InLists()), path)
    assert 1 < len(plans) <= 13
    assert not plans[0].keys_read
