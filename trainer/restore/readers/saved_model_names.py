"""The names that variables had in the program that wrote a SavedModel; its checkpoint has numbers for some."""

import os

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from trainer.restore.names import normalize_siblings
from trainer.restore.report import RestoreError
from trainer.restore.source import Node


def label_variables(prefix: str, top: Node) -> None:
    """Sets `label` on a SavedModel's entries, and `keras_name` on its layers; does nothing for other checkpoints.

    prefix: `.../variables/variables`.  Nothing in the file is run.
    Raises `RestoreError` if the SavedModel's description is damaged.
    """
    folder, name = os.path.split(prefix)
    path = os.path.join(os.path.dirname(folder), "saved_model.pb")
    if name != "variables" or os.path.basename(folder) != "variables" or not tf.io.gfile.exists(path):
        return
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        graphs = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    except DecodeError as error:
        raise RestoreError(f"{path} is damaged: it is no description of a SavedModel.") from error
    described = graphs[0].object_graph_def.nodes if graphs else []
    queue = [(0, top)] if described else []
    seen: set[int] = set()
    for index, node in queue:
        if index in seen or not 0 <= index < len(described):
            continue
        seen.add(index)
        if node.entry is not None:
            node.entry.label = described[index].variable.name
        spelled = normalize_siblings(child.local_name for child in described[index].children)
        for child in described[index].children:
            part = node.children.get(spelled[child.local_name])
            if part is not None:
                queue.append((child.node_id, part))
    for _, node in queue:
        paths = {child.entry.label.rpartition("/")[0] for child in node.children.values() if child.entry is not None}
        if len(paths) == 1 and node.entry is None:
            node.keras_name = paths.pop().rpartition("/")[2]
