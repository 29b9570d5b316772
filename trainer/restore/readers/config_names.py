"""Names the layers in a Keras 2 `.keras` archive, whose weights go by class and number, from its config."""

from collections import Counter

from trainer.restore.matching.model_tree import snake_case
from trainer.restore.matching.names import readable_name
from trainer.restore.readers.hdf5 import Group

# The list of a model's layers: its name since Keras 2.14, and the one before.
LAYER_LISTS = ("layers", "_layer_checkpoint_dependencies")


def name_groups(group: Group, description: object) -> None:
    """Sets `keras_name` on the `vars` groups of a model's layers, where the file has none, as Keras 3 writes it.

    description: the model's part of `config.json`, `{"class_name": ..., "config": {"layers": [...]}}`. Both
      sides list the layers in one order, so that the second Dense of the config is `dense_1` in the weights.
    """
    lists = [group.groups[name] for name in LAYER_LISTS if name in group.groups]
    times: Counter[str] = Counter()
    for layer in _layers(description):
        class_name = snake_case(str(layer.get("class_name")).rpartition(">")[2])
        key = f"{class_name}_{times[class_name]}" if times[class_name] else class_name
        times[class_name] += 1
        for found in (part.groups[key] for part in lists if key in part.groups):
            config = layer.get("config")
            name = config.get("name") if isinstance(config, dict) else None
            if isinstance(name, str) and "vars" in found.groups:
                found.groups["vars"].keras_name = found.groups["vars"].keras_name or readable_name(name)
            name_groups(found, layer)


def _layers(description: object) -> list[dict]:
    config = description.get("config") if isinstance(description, dict) else None
    layers = config.get("layers") if isinstance(config, dict) else None
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
