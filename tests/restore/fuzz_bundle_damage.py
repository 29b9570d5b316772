"""Ways to damage a TensorFlow checkpoint behind right checksums: the rows of its table, the table, the graph."""

import bundles
from fuzz_damage import NAMES, NUMBERS, Case


def change_a_row(case: Case) -> str:
    dice = case.dice
    key = dice.choice([key for key, _ in bundles.rows_of(case.prefix) if key])
    field = dice.choice(["dim", "dim", "rank", "dtype", "shard_id", "offset", "size", "crc32c", "slices"])
    number = dice.choice(NUMBERS)

    def change(entry):
        if field == "dim" and entry.shape.dim:
            dice.choice(entry.shape.dim).size = number
        elif field == "rank":
            entry.shape.unknown_rank = dice.random() < 0.5
            for _ in range(dice.choice([1, 70, 300])):
                entry.shape.dim.add().size = number % 2**63
        elif field == "dtype":
            entry.dtype = dice.choice([0, 2, 3, 7, 14, 20, 21, 99, 101, 2**31 - 1, -1])
        elif field == "slices":
            extent = entry.slices.add().extent.add()
            extent.start, extent.length = number, dice.choice(NUMBERS)
        elif field in ("shard_id", "crc32c"):
            setattr(entry, field, number % 2**31 if field == "crc32c" else max(-(2**31), min(number, 2**31 - 1)))
        elif field in ("offset", "size"):
            setattr(entry, field, number)

    bundles.change_entry(case.prefix, key, change)
    return f"{key!r}: {field} {number}"


def change_the_header(case: Case) -> str:
    field = case.dice.choice(["num_shards", "min_consumer", "endianness"])
    number = case.dice.choice([-1, 0, 2, 99, 10**6, 2**31 - 1])

    def change(header):
        if field == "min_consumer":
            header.version.min_consumer = number
        else:
            setattr(header, field, number)

    bundles.change_entry(case.prefix, b"", change)
    return f"header: {field} {number}"


def change_the_rows(case: Case) -> str:
    rows, dice = bundles.rows_of(case.prefix), case.dice
    place = dice.randrange(len(rows))
    key, value = rows[place]
    what = dice.choice(["gone", "twice", "shuffled", "called otherwise", "garbage", "cut"])
    if what == "gone":
        del rows[place]
    elif what == "twice":
        rows.insert(place, rows[place])
    elif what == "shuffled":
        dice.shuffle(rows)
    elif what == "called otherwise":
        rows[place] = (
            dice.choice([*(name.encode() for name in NAMES), b"\xff\xfe", b"\0\1a\0\1", key + b"\x07"]),
            value,
        )
        rows.sort()
    else:
        rows[place] = (key, dice.randbytes(30) if what == "garbage" else value[: dice.randrange(len(value) + 1)])
    bundles.write_rows(case.prefix, rows)
    return f"row {place} is {what}"


def change_the_table(case: Case) -> str:
    rows, dice = bundles.rows_of(case.prefix), case.dice
    restarts = dice.choice([None, [], [0, 5], [2**32 - 1], [3]])
    shared = dice.choice([None, 1, 7, 2**40])
    packing = dice.choice([0, 0, 1, 2, 77])
    bundles.write_rows(case.prefix, rows, lambda rows: bundles.block_of(rows, restarts, shared), packing)
    return f"restarts {restarts}, shared {shared}, packing {packing}"


def change_the_graph(case: Case) -> str:
    graph, dice = bundles.graph_of(case.prefix), case.dice
    node = dice.choice([node for node in graph.nodes if node.children])
    child = dice.choice(node.children)
    what = dice.choice(["number", "circle", "chain", "same name", "name", "key", "bytes", "cut", "empty"])
    if what == "number":
        child.node_id = dice.choice([-1, len(graph.nodes), 2**31 - 1])
    elif what == "circle":
        child.node_id = 0
    elif what == "chain":
        for _ in range(dice.choice([50, 300, 3000])):
            node.children.add(
                node_id=len(graph.nodes), local_name=dice.choice(["deep", "a", "model"]) + str(len(graph.nodes))
            )
            node = graph.nodes.add()
    elif what == "same name":
        node.children.add(node_id=dice.randrange(len(graph.nodes)), local_name=child.local_name)
    elif what == "name":
        child.local_name = dice.choice(NAMES)
    elif what == "key":
        part = dice.choice([part for node in graph.nodes for part in node.attributes])
        setattr(part, dice.choice(["checkpoint_key", "full_name", "name"]), dice.choice(NAMES))
    content = bytearray(b"" if what == "empty" else graph.SerializeToString())
    if what == "bytes":
        for _ in range(dice.choice([1, 1, 5])):
            content[dice.randrange(len(content))] = dice.randrange(256)
    bundles.write_graph(case.prefix, bytes(content[: dice.randrange(len(content))] if what == "cut" else content))
    return f"graph: {what}"
