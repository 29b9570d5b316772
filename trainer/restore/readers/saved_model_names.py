"""The names that variables had in the program that wrote a SavedModel; its checkpoint has numbers for some."""

import os

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from trainer.restore.report import RestoreError
from trainer.restore.source import Node


def label_variables(prefix: str, top: Node) -> None:
    """Sets `label` on the entries of a SavedModel's numbered lists; does nothing for other checkpoints.

    prefix: `.../variables/variables`.  `model.export()` writes such lists. Nothing in the file is run.
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
    nodes = graphs[0].object_graph_def.nodes if graphs else []
    for child in nodes[0].children if nodes else []:
        numbered = top.children.get(child.local_name)
        if numbered is None or not 0 < child.node_id < len(nodes):
            continue
        for part in nodes[child.node_id].children:
            entry = numbered.children[part.local_name].entry if part.local_name in numbered.children else None
            if entry is not None and part.local_name.isdigit() and part.node_id < len(nodes):
                entry.label = nodes[part.node_id].variable.name
