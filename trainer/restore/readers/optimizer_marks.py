"""Knows an optimizer in a checkpoint by what it keeps; TensorFlow writes no classes there."""

from trainer.restore.source import Node

_BY_SLOTS = {
    frozenset(slots.split()): kin
    for slots, kin in {
        "m v": "Adam or a kin",
        "m v vhat": "Adam with amsgrad",
        "momentums velocities": "Adam or a kin",
        "momentums velocities velocity_hats": "Adam with amsgrad",
        "momentums": "SGD with momentum, or Lion",
        "momentums u_product velocities": "Nadam",
        "adam_velocities momentums": "Muon",
        "c r v": "Adafactor",
        "momentum": "SGD with momentum",
        "velocities": "RMSprop",
        "rms": "RMSprop",
        "rms momentum": "RMSprop with momentum",
        "velocities momentums average_gradients": "RMSprop, centered",
        "accumulators": "Adagrad",
        "accumulator": "Adagrad",
        "accumulators linears": "Ftrl",
        "m u": "Adamax",
        "accumulated_grads accumulated_delta_vars": "Adadelta",
    }.items()
}
_NO_SLOTS = {"variables", "trainable_variables", "trainable_variables_indices", "exclude_layers"}


def looks_like_optimizer(children: dict[str, Node]) -> bool:
    """Whether an object has a step counter and a rate, and nothing but variables and flat lists of them.

    The names alone would take a user's Checkpoint(model=..., iter=..., learning_rate=...) for one.
    """
    names = set(children)
    if names & {"inner_optimizer", "base_optimizer"}:
        return True
    return bool(
        names & {"iterations", "iter"}
        and names & {"learning_rate", "variables", "current_learning_rate", "decay"}
        # The lists go by number; tf_keras keeps the parts of a loss scale by name.
        and all(
            name.isdigit() and not part.children
            for key, child in children.items()
            if key != "loss_scale" and not _holds_optimizers(key, child)
            for name, part in child.children.items()
        )
    )


def _holds_optimizers(name: str, node: Node) -> bool:
    """Whether it is the list of those that an optimizer in groups, or Keras' MultiOptimizer, is made of."""
    parts = node.children.values()
    is_list = name in ("optimizers", "inner_optimizers") and bool(parts)
    return is_list and all(looks_like_optimizer(part.children) for part in parts)


def optimizer_by_slots(node: Node, slot_names: list[str]) -> str:
    """Which optimizers keep the slots that this one has.

    slot_names: those that the file calls so, as Keras 2 writes them; else they are told by their lists.
    """
    for name, child in node.children.items():
        if _holds_optimizers(name, child):
            kins = dict.fromkeys(optimizer_by_slots(part, []) for part in child.children.values())
            return f"{len(child.children)} for groups of variables: {'; '.join(kins)}"
    lists = sorted(name for name, child in node.children.items() if child.children and name not in _NO_SLOTS)
    names = slot_names or lists
    if not names:
        return "one without slots, as plain SGD"
    kin = _BY_SLOTS.get(frozenset(names))
    return (f"{kin}, by its slots " if kin else "one with the slots ") + ", ".join(names)
