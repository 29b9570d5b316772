"""Refuses data that are drawn at random in a way that seed and step do not decide: no run could see them again."""

from collections.abc import Callable, Iterator

import tensorflow as tf

from trainer.errors import UserError
from trainer.tf_internals import chain_of, graphs_of, kind_of, reshuffles

# Operations whose state lies in the process. Those of tf.random.stateless_* have none and are not among them.
_RANDOM = (
    "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "ParameterizedTruncatedNormal",
    "RandomShuffle", "RandomGamma", "RandomPoisson", "RandomPoissonV2", "Multinomial", "RandomCrop",
    "SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2", "StatefulUniform", "StatefulUniformInt",
    "StatefulUniformFullInt", "StatefulStandardNormalV2", "StatefulTruncatedNormal", "StatefulRandomBinomial",
    "RngReadAndSkip", "RngSkip",
)  # fmt: skip
# By these a seed generator of Keras counts its draws: its layers and keras.random then draw by stateless operations.
_COUNTING = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")
_SHUFFLES = ("Shuffle", "ShuffleAndRepeat", "Random")


def check_repeatable(dataset: tf.data.Dataset, what: str) -> None:
    """Raises `UserError` for a data set that gives other examples, or another order, when it is read again.

    what: the data, for people.
    """
    found = sorted(set(_random_parts(dataset)))
    if dataset.options().deterministic is False:
        found.append("options().deterministic is False")
    if found:
        raise UserError(
            f"{what} is drawn at random ({', '.join(found)}): a run that is resumed would see other examples. Leave "
            "shuffling out: each epoch has its order by seed and epoch (for files, list_files(shuffle=False)). Draw "
            "random changes in a function bound to `augment`, by the seed that it is given."
        )


def check_same_each_time(make: Callable[[], tf.data.Dataset], what: str) -> None:
    """Raises `UserError` where Python's or NumPy's random numbers are in the functions of a data set.

    make: maps the user's function again; a number that Python drew is a constant of the graph, another one each time.
    """
    if _constants(make()) != _constants(make()):
        raise UserError(
            f"{what}: preprocess or augment draws by Python or NumPy while TensorFlow traces it. The number stays the "
            "same for all examples, and a run that is resumed has another one. Draw by tf.random.stateless_uniform and "
            "its kind in a function bound to `augment`, by the seed that it is given."
        )


def _random_parts(dataset: tf.data.Dataset) -> Iterator[str]:
    for each in chain_of(dataset):
        if kind_of(each) in _SHUFFLES and reshuffles(each):
            yield "shuffle" if kind_of(each) != "Random" else "Dataset.random"
        for node in _nodes(each):
            if node.op in _RANDOM:
                yield node.op
            elif node.op in _COUNTING:
                yield "a variable that is counted up, as a random layer of Keras has one"
            elif node.op.startswith("Shuffle") and node.attr["reshuffle_each_iteration"].b:
                yield "shuffle"


def _constants(dataset: tf.data.Dataset) -> list[bytes]:
    """The numbers in the functions of the last transformation, sorted.

    Inner functions are numbered by process, so that their order differs; texts may hold such numbers.
    """
    values = (node.attr["value"] for node in _nodes(dataset) if node.op == "Const")
    return sorted(
        value.SerializeToString(deterministic=True)
        for value in values
        if value.tensor.dtype != tf.string.as_datatype_enum
    )


def _nodes(dataset: tf.data.Dataset) -> Iterator:
    for graph in graphs_of(dataset):
        yield from graph.node
        for function in graph.library.function:
            yield from function.node_def
