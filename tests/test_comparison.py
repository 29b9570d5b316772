"""Several optimizers from one start: the same bits as alone, what may be concluded, and what is refused."""

import base64
import csv
import html.parser
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import gin
import h5py
import pytest
from commands import run_command, start_command
from conftest import full, make_strategy

import trainer
from trainer.comparison.display import progress_in
from trainer.comparison.plan import Plan
from trainer.comparison.process import Devices
from trainer.comparison.record import RunRecord
from trainer.comparison.results import Result
from trainer.comparison.spread import chance_of_parting, starts_alike, verdict
from trainer.comparison.table import table_rows
from trainer.config import bindings_in, differing_lines, parse_config, register_keras, text_of
from trainer.output.metric_writer import read_rows

CONFIG = """
include 'configs/base.gin'
include 'configs/tasks/regression.gin'
include 'configs/data/linear.gin'
INIT_CHECKPOINT = None
train.restore = None
NUM_STEPS = 20
MODEL = @linear
OPTIMIZER = @SGD
Intervals.eval_every = 5
Intervals.log_every = 5
compare.members = ['sgd', 'adam', 'rmsprop']
compare.num_seeds = 2
compare.metric = 'loss'
compare.mode = 'min'
sgd/SGD.learning_rate = 0.005
adam/OPTIMIZER = @Adam  # a macro, and below the parameter itself
adam/Adam.learning_rate = 0.1
rmsprop/train.optimizer = @RMSprop
rmsprop/RMSprop.learning_rate = 0.05
"""


IMPORT = "import comparison_parts\n"


def prepare(folder, *gin_params, text=CONFIG):
    """Parses the config of this file, as a command does."""
    gin.clear_config()
    register_keras()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.gin").write_text(text)
    parse_config([str(folder / "compare.gin")], gin_params)


def run_compare(folder, *gin_params, replicas=1, text=CONFIG, **more):
    prepare(folder, *gin_params, text=text)
    return gin.get_configurable("comparison.compare")(
        model_dir=folder / "out", devices=devices(replicas), source_data=None, **more
    )


def devices(replicas: int) -> Devices:
    return Devices("one_device") if replicas == 1 else Devices("mirrored", virtual_devices=replicas)


def rows_of(folder):
    """The rows of comparison.csv without times and memory."""
    measured = {
        "wall_seconds",
        "whole_wall_seconds",
        "at_a_time",
        "examples_per_second",
        "peak_memory_bytes",
        "message",
    }
    with open(folder / "comparison.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in measured} for row in csv.DictReader(file)]


def weights_in(path) -> dict[str, bytes]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()].tobytes()} if hasattr(item, "dtype") else {}))
    assert found
    return found


# What a member is


def test_a_members_bindings_are_those_of_its_runs_alone(tmp_path):
    prepare(tmp_path, "sgd/SGD.momentum = 0.5")
    assert bindings_in("adam") == {"Adam.learning_rate": "0.1", "OPTIMIZER": "@Adam"}
    text = text_of("adam", seed=7)
    assert "\nSEED = 7\n" in text, "the macro, which may be used elsewhere too"
    assert "\nOPTIMIZER = @Adam\n" in text and "compare" not in text and "momentum" not in text
    text = text_of("sgd", seed=0)
    assert "\nSGD.momentum = 0.5\n" in text and "\nOPTIMIZER = @SGD\n" in text
    assert gin.query_parameter("%SEED") == 0 and "sgd/SGD.momentum = 0.5" in gin.config_str()
    gin.clear_config()
    with_sgd = CONFIG.partition("compare.members")[0]
    prepare(tmp_path, "SGD.learning_rate = 0.005", "SGD.momentum = 0.5", text=with_sgd)
    assert differing_lines(text, gin.config_str(), harmless_too=True) == [], "the config of such a run alone"


def test_a_scope_that_only_a_member_refers_to_is_in_its_config_and_a_former_members_is_not(tmp_path):
    text = CONFIG + "head/group.pattern = 'bias'\nhead/group.learning_rate_multiplier = 0.5\n"
    prepare(
        tmp_path, "adam/Finetune.groups = [@head/group()]", "compare.members = ['sgd', 'adam']",
        "rmsprop/train.optimizer = @rmsprop/RMSprop", text=text,
    )  # fmt: skip
    assert "head/group.pattern = 'bias'" in text_of("adam", 0) and "rmsprop" not in text_of("adam", 0)
    assert "head/group" not in text_of("sgd", 0) and "rmsprop" not in text_of("sgd", 0)


def test_a_gin_file_is_a_member_with_what_it_and_its_includes_bind_and_the_config_wins(tmp_path):
    (tmp_path / "momentum.gin").write_text("SGD.momentum = 0.5\nSGD.learning_rate = 0.1\n")
    (tmp_path / "heavy.gin").write_text(
        f"include '{tmp_path / 'momentum.gin'}'\nOPTIMIZER = @SGD\nFinetune.groups = [@some/group()]\n"
        "some/group.pattern = 'bias'\n"
    )
    prepare(tmp_path, f"compare.members = ['adam', '{tmp_path / 'heavy.gin'}']", "heavy/SGD.learning_rate = 0.01")
    assert gin.query_parameter("compare.members") == ["adam", "heavy"]
    assert bindings_in("heavy") == {
        "Finetune.groups": "[@some/group()]", "OPTIMIZER": "@SGD", "SGD.learning_rate": "0.01", "SGD.momentum": "0.5",
        "some/group.pattern": "'bias'",
    }  # fmt: skip
    text = text_of("heavy", 0)
    assert "\nsome/group.pattern = 'bias'\n" in text and "Adam" not in text
    with pytest.raises(trainer.UserError, match="lorra.gin is not there.* Did you mean 'configs/optimizers/lora.gin'"):
        prepare(tmp_path, "compare.members = ['adam', 'configs/optimizers/lorra.gin']")


@pytest.mark.parametrize(
    ("files", "message"),
    [(["one/a.gin", "two/a.gin"], "two members would be called so"), (["one/a-b.gin"], "'a-b': it must be letters")],
)
def test_a_gin_file_whose_name_is_no_members_is_refused_by_name(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("OPTIMIZER = @SGD\n")
    with pytest.raises(trainer.UserError, match=f"compare.members: .*{message}.* Rename the file"):
        prepare(tmp_path, f"compare.members = {[str(tmp_path / name) for name in files]}")


def test_what_each_member_sets_need_not_be_set_for_all(tmp_path):
    text = CONFIG.replace("\nOPTIMIZER = @SGD\n", "\nsgd/OPTIMIZER = @SGD\n")
    prepare(tmp_path, "compare.members = ['sgd', 'adam']", text=text)
    assert "\nOPTIMIZER = @SGD\n" in text_of("sgd", 0) and "\nOPTIMIZER = @Adam\n" in text_of("adam", 0)
    with pytest.raises(trainer.UserError, match="does not set OPTIMIZER"):
        prepare(tmp_path, "compare.members = ['sgd', 'adam']", text=text.replace("sgd/OPTIMIZER = @SGD\n", ""))


# what is wrong -> (bindings, those with a + in the file and not on the command line; the message)
WRONG = {
    "no members": (["compare.members = []"], "compares nothing: name the members"),
    "one member": (["compare.members = ['adam']"], "names 'adam' alone"),
    "a member twice": (["compare.members = ['adam', 'sgd', 'adam']"], "names 'adam' twice"),
    "a member of which nothing is set": (
        ["compare.members = ['sgd', 'adma']"], "nothing is set for 'adma'. Did you mean 'adam'?"),
    "a member that is no scope": (["compare.members = ['sgd', 'a/b']"], "'a/b' must be made of letters"),
    "a member called like a scope of the data": (
        ["compare.members = ['sgd', 'some']", "TRAIN_DATA = @some/in_memory()", "some/Finetune.frozen = []"],
        "uses the scope 'some' for something that all"),
    "an unknown metric": (["compare.metric = 'los'"], "'los' is not evaluated. Did you mean 'loss'?"),
    "a loss to be high": (["compare.mode = 'max'"], "set compare.mode = 'min'"),
    "no seeds": (["compare.num_seeds = 0"], "num_seeds = 0 must be 1 or more"),
    "another kind of order": (["compare.mode = 'best'"], "mode = 'best' must be"),
    "no evaluation data": (["EVAL_DATA = None"], "set EVAL_DATA"),
    "another model": (["adam/train.model = @small_cnn"], "adam/train.model changes train.model"),
    "another model by its macro": (["adam/MODEL = @small_cnn"], "adam/MODEL changes train.model"),
    "other data": (["adam/in_memory.name = 'other'"], "adam/in_memory.name changes train.train_data"),
    "another budget": (["adam/NUM_STEPS = 30"], "adam/NUM_STEPS changes train.num_steps"),
    "another batch": (["adam/GLOBAL_BATCH_SIZE = 3"], "adam/GLOBAL_BATCH_SIZE changes train.global_batch_size"),
    "another seed": (["adam/SEED = 3"], "adam/SEED changes train.seed"),
    "another start": (["+adam/Restore.checkpoint = '/x'"], "adam/Restore.checkpoint changes Restore.checkpoint"),
    "other evaluations": (["adam/Intervals.eval_every = 3"], "adam/Intervals.eval_every changes Intervals.eval_every"),
    "another loss": (["adam/supervised.loss = @Huber()"], "adam/supervised.loss changes train.task"),
    "another metric": (["+adam/compare.metric = 'x'"], "adam/compare.metric changes compare.metric"),
    "a mistyped parameter": (["adam/Adam.learing_rate = 1"], "no parameter 'learing_rate'.* Did you mean"),
    "a mistyped scope": (["adm/Adam.beta_1 = 0.8"], "nothing runs in the scope 'adm'. Did you mean 'adam'?"),
    "a mistyped macro": (["adam/OPTIMISER = @Adam"], "adam/OPTIMISER is set, .* Did you mean 'OPTIMIZER'?"),
    "a wrong type": (["compare.num_seeds = 'three'"], "compare.num_seeds must be a whole number, not 'three'"),
    "a model that differs by what Python calls": (
        ["MODEL = @dropout_net", "+import comparison_parts", "+adam/hidden_width.width = 8"],
        r"'sgd' and 'adam' do not start alike.*variable.*\n  of sgd: \(1, 4\) float32\n  of adam: \(1, 8\) float32"),
    "a setting of a layer that differs by what Python calls": (
        ["MODEL = @dropout_net", "+import comparison_parts", "+adam/hidden_rate.rate = 0.25"],
        r"'sgd' and 'adam' do not start alike.*settings of layer.*Dropout.*rate=0.5.*rate=0.25"),
    "data that differ by what Python calls": (
        ["TRAIN_DATA = @first_rows()", "+import comparison_parts", "+adam/hidden_width.width = 9"],
        "'sgd' and 'adam' do not start alike.* the first batches of train_data"),
    "a member that cannot be built": (
        ["adam/Finetune.frozen = ['nothing']"], "The member 'adam': frozen: 'nothing' matches no"),
}  # fmt: skip


# The rest of their kind: what is found by building every member.
BUILT = (
    "a setting of a layer that differs by what Python calls", "data that differ by what Python calls",
    "a member that cannot be built", "another loss", "other data",
)  # fmt: skip


@pytest.mark.parametrize("what", [full(what) if what in BUILT else what for what in WRONG])
def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path, what):
    bindings, message = WRONG[what]
    text = CONFIG + "\n".join(binding[1:] for binding in bindings if binding.startswith("+"))
    with pytest.raises(trainer.UserError) as refused:
        run_compare(tmp_path, *(binding for binding in bindings if not binding.startswith("+")), text=text)
    assert re.search(message, str(refused.value), re.DOTALL), refused.value
    assert not (tmp_path / "out").exists()


def test_several_workers_are_refused_before_any_of_them_is_waited_for(tmp_path, monkeypatch):
    workers = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(workers))
    prepare(tmp_path)
    compare = gin.get_configurable("comparison.compare")
    for strategy in ("auto", "multi_worker"):
        with pytest.raises(trainer.UserError, match="not workers of one run"):
            compare(model_dir=tmp_path / "out", devices=Devices(strategy), source_data=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_a_member_may_change_what_optimizes(tmp_path, capsys):
    changes = ["adam/Step.ema_decay = 0.9", "sgd/Step.accumulation_steps = 2", "rmsprop/Finetune.frozen = ['bias']"]
    assert run_compare(tmp_path, *changes, dry_run=True) == 0
    page = capsys.readouterr().out
    assert "adam             Step.ema_decay = 0.9" in page and "2 variables with 2 weights, bit for bit" in page
    assert "0 of 6 are done" in page and not (tmp_path / "out").exists()


# The runs

ONE_SEED = ["compare.num_seeds = 1", "compare.members = ['sgd', 'adam']"]


def restored_from(folder):
    return [f"INIT_CHECKPOINT = '{folder / 'source/checkpoints'}'", "train.restore = @Restore()"]


class Compared(NamedTuple):
    """A finished comparison of all members with two seeds, in `make test` of two members with one."""

    folder: Path
    members: tuple[str, ...]
    seeds: str
    changes: list[str]


@pytest.fixture(scope="module")
def compared(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("compared")
    prepare(folder, "MODEL = @dropout_net", "NUM_STEPS = 1", text=IMPORT + CONFIG.partition("compare.members")[0])
    gin.get_configurable("experiment.train")(model_dir=folder / "source", strategy=make_strategy(1))
    members, seeds, fewer = ("sgd", "adam", "rmsprop"), "01", []
    if not request.config.getoption("--full"):
        members, seeds, fewer = ("sgd", "adam"), "0", ONE_SEED
    changes = [
        *restored_from(folder),
        "MODEL = @dropout_net",
        "compare.source_data = @first_rows()",
        "compare.target = 20.0",
        *fewer,
    ]
    assert run_compare(folder, *changes, text=IMPORT + CONFIG) == 0
    return Compared(folder, members, seeds, changes)


def test_every_run_is_the_run_that_it_is_alone_to_the_last_bit(compared, tmp_path):
    # The last but one of six in that process, or of two the last, as an ordinary config says it.
    seed = compared.seeds[-1]
    prepare(
        tmp_path, *restored_from(compared.folder), "MODEL = @dropout_net", "OPTIMIZER = @Adam",
        "Adam.learning_rate = 0.1", f"SEED = {seed}",
        text=IMPORT + CONFIG.partition("compare.members")[0],
    )  # fmt: skip
    gin.get_configurable("experiment.train")(model_dir=tmp_path / "alone", strategy=make_strategy(1))
    alone, together = (
        weights_in(path / "final.weights.h5")
        for path in (tmp_path / "alone", compared.folder / f"out/adam/seed_{seed}")
    )
    assert alone == together
    sgd = weights_in(compared.folder / f"out/sgd/seed_{seed}/final.weights.h5")
    assert sgd.keys() == alone.keys() and sgd != alone
    config = (compared.folder / f"out/adam/seed_{seed}/operative_config.gin").read_text()
    assert "Adam.learning_rate = 0.1" in config and "RMSprop" not in config and "compare." not in config


def test_the_csv_has_a_row_a_run_in_full_precision(compared):
    rows = rows_of(compared.folder / "out")
    assert [(row["member"], row["seed"]) for row in rows] == [
        (member, seed) for seed in compared.seeds for member in compared.members
    ]
    for row in rows:
        evaluated = [r for r in read_rows(compared.folder / "out" / row["model_dir"] / "metrics.jsonl") if "split" in r]
        losses = [r["loss"] for r in evaluated]
        assert [float(row[name]) for name in ("initial", "final", "best")] == [losses[0], losses[-1], min(losses)]
        first = next((str(r["step"]) for r in evaluated if r["loss"] <= 20.0), "")
        assert row["steps_to_target"] == first
        assert row["state"] == "finished"
        assert row["optimizer"] == {"sgd": "SGD", "adam": "Adam", "rmsprop": "RMSprop"}[row["member"]]
    # The rows 1 to 6 hold each of the points 1, 2, 3 and others: what was forgotten is the loss on all of them.
    assert all(float(row["source_before"]) != float(row["source_after"]) for row in rows)
    assert len({row["source_before"] for row in rows if row["seed"] == "0"}) == 1, "one start for all members"


def test_all_members_of_a_seed_start_alike_and_it_is_reported(compared):
    rows = rows_of(compared.folder / "out")
    for seed in compared.seeds:
        assert len({row["initial"] for row in rows if row["seed"] == seed}) == 1
    page = (compared.folder / "out/comparison.md").read_text()
    assert f"same metrics at step 0, bit for bit ({len(rows)} runs)" in page
    assert len({row["initial"] for row in rows}) == 1, "every seed starts from the checkpoint"


def test_the_page_stands_alone_and_is_well_formed(compared):
    text = (compared.folder / "out/comparison.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:|//|\w+\.png)|url\(|@import", text)
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(picture[1]) == (compared.folder / "out/comparison.png").read_bytes()
    open_tags: list[str] = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(text)
    assert open_tags == [] and "Adam.learning_rate = 0.1" in text and "SGD.learning_rate" in text


def test_a_name_or_value_cannot_break_out_of_page_and_table(tmp_path):
    from trainer.comparison.page import html_page
    from trainer.comparison.table import markdown_table

    text = html_page("<b>", ["a & <script>"], [["", "m"], ["<i>", "1 < 2"]], b"", [("m", "x = '<u>'")], ["</ul>"])
    assert not re.search("<(b|script|i|u)>", text) and "a &amp; &lt;script&gt;" in text
    assert markdown_table([["", "a|b"], ["c", "d"]]).splitlines()[0] == r"|  | a\|b |"


def test_the_same_command_again_makes_no_run_again(compared):
    before = {path: path.stat().st_mtime_ns for path in compared.folder.glob("out/*/*/summary.json")}
    rows = rows_of(compared.folder / "out")
    assert (
        run_compare(compared.folder, *compared.changes, text=IMPORT + CONFIG) == 0
        and rows_of(compared.folder / "out") == rows
    )
    assert {path: path.stat().st_mtime_ns for path in compared.folder.glob("out/*/*/summary.json")} == before


@pytest.mark.full
def test_seeds_and_members_may_be_added_and_a_member_that_is_gone_is_not_in_the_table(tmp_path, capsys):
    assert run_compare(tmp_path, *ONE_SEED) == 0
    kept = (tmp_path / "out/adam/seed_0/summary.json").stat().st_mtime_ns
    assert run_compare(tmp_path, "compare.members = ['rmsprop', 'adam']") == 0
    assert (tmp_path / "out/adam/seed_0/summary.json").stat().st_mtime_ns == kept
    assert [(row["member"], row["seed"]) for row in rows_of(tmp_path / "out")] == [
        ("rmsprop", "0"), ("adam", "0"), ("rmsprop", "1"), ("adam", "1"),
    ]  # fmt: skip
    assert "sgd" not in (tmp_path / "out/comparison.md").read_text()
    assert "not compared     sgd" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize(
    ("change", "reported"),
    [("adam/Adam.learning_rate = 0.2", "now: Adam.learning_rate = 0.2"), ("NUM_STEPS = 30", "now: NUM_STEPS = 30")],
)
def test_a_run_of_another_config_is_not_mixed_in(tmp_path, change, reported):
    run_compare(tmp_path, *ONE_SEED)
    rows = rows_of(tmp_path / "out")
    with pytest.raises(trainer.UserError, match=r"holds the run (sgd|adam)/seed_0 of another config") as refused:
        run_compare(tmp_path, *ONE_SEED, change)
    assert reported in str(refused.value) and rows_of(tmp_path / "out") == rows


@pytest.mark.full
def test_an_optimizer_that_diverges_is_a_result_and_the_others_continue(tmp_path, capsys):
    wild = ["sgd/SGD.learning_rate = 1e20", "compare.num_seeds = 1"]
    assert run_compare(tmp_path, *wild) == 0
    rows = {row["member"]: row for row in rows_of(tmp_path / "out")}
    assert [rows[member]["state"] for member in ("sgd", "adam", "rmsprop")] == ["diverged", "finished", "finished"]
    assert rows["sgd"]["final"] == "" and int(rows["sgd"]["diverged_at"]) <= 5
    assert "sgd diverged in 1 of 1 seeds" in (tmp_path / "out/comparison.md").read_text()
    log = (tmp_path / "out/sgd/seed_0/log.txt").read_text()
    assert run_compare(tmp_path, *wild) == 0
    assert (tmp_path / "out/sgd/seed_0/log.txt").read_text() == log, "it would diverge again"


@pytest.mark.full
def test_a_run_that_fails_is_reported_and_made_by_the_next_command(tmp_path, capsys):
    (tmp_path / "out/adam/seed_0").mkdir(parents=True)
    (tmp_path / "out/adam/seed_0/ckpt-1.index").write_text("someone's")
    assert run_compare(tmp_path, *ONE_SEED) == 2
    assert "adam/seed_0 failed: model_dir" in (tmp_path / "out/comparison.md").read_text()
    assert [row["state"] for row in rows_of(tmp_path / "out")].count("finished") == 1
    (tmp_path / "out/adam/seed_0/ckpt-1.index").unlink()
    assert run_compare(tmp_path, *ONE_SEED) == 0
    assert [row["state"] for row in rows_of(tmp_path / "out")] == ["finished", "finished"]


@pytest.mark.full
def test_two_replicas_compare_as_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, replicas in ((one, 1), (two, 2)):
        assert run_compare(folder, *ONE_SEED, replicas=replicas) == 0
    for ours, theirs in zip(rows_of(one / "out"), rows_of(two / "out"), strict=True):
        assert float(ours["final"]) == pytest.approx(float(theirs["final"]), rel=1e-4, abs=1e-6)


# What may be concluded


def plan_of(members="ab", seeds=3, metric="accuracy", higher=True, target=None):
    return Plan({member: {} for member in members}, range(seeds), metric, higher, target, 100)


def results_of(**finals):
    """Runs by member; None for one that diverged."""
    return [
        Result(member, seed, RunRecord(state="diverged" if final is None else "finished"), final=final)
        for member, values in finals.items()
        for seed, final in enumerate(values)
    ]


def test_an_order_is_claimed_only_between_ranges_that_lie_apart():
    reported = verdict(plan_of(), results_of(a=[0.80, 0.82, 0.84], b=[0.70, 0.75, 0.79]))
    assert reported[0] == "a ended better than b in all 3 seeds: its worst accuracy is 0.8, the other's best 0.79."
    # 2 of the 6! / (3! 3!) = 20 orders of six runs.
    assert chance_of_parting(3) == pytest.approx(0.1) and "in 1 of 10 comparisons" in reported[1]


def test_no_winner_inside_the_spread():
    # The means are apart by 0.04, yet b's best run is above a's worst.
    reported = verdict(plan_of(), results_of(a=[0.80, 0.82, 0.84], b=[0.75, 0.78, 0.81]))
    assert reported == ["Within the spread, no order is claimed: a and b."]
    assert verdict(plan_of(), results_of(a=[0.8, 0.9, 0.9], b=[0.7, 0.7, 0.8])) == reported, "equal ends overlap"


def test_a_lower_loss_is_the_better_one():
    reported = verdict(plan_of(metric="loss", higher=False), results_of(a=[0.5, 0.6, 0.7], b=[0.1, 0.2, 0.3]))
    assert reported[0] == "b ended better than a in all 3 seeds: its worst loss is 0.3, the other's best 0.5."


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_fewer_than_three_seeds_no_order_is_claimed(seeds):
    reported = verdict(plan_of(seeds=seeds), results_of(a=[0.9] * seeds, b=[0.1] * seeds))
    assert len(reported) == 1 and reported[0].startswith("No order is claimed")


def test_a_member_that_diverged_in_one_seed_is_in_no_order():
    reported = verdict(plan_of("abc"), results_of(a=[0.9, 0.9, None], b=[0.1, 0.1, 0.1], c=[0.5, 0.5, 0.5]))
    assert reported[0] == "a diverged in 1 of 3 seeds." and "a is in no order" in reported[1]
    assert reported[2].startswith("c ended better than b") and not any("a ended better" in each for each in reported)


@pytest.mark.full
def test_source_data_that_cannot_be_evaluated_is_refused_before_the_first_run(tmp_path):
    source = ["compare.source_data = @source/in_memory()", "source/in_memory.name = 'other'"]
    with pytest.raises(trainer.UserError, match="compare.source_data \\(other.*'y'"):
        run_compare(tmp_path, *source, "source/in_memory.examples = {'x': [[1.0]]}")
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_from_random_weights_nothing_can_be_forgotten(tmp_path):
    source = ["compare.source_data = @in_memory()", "compare.members = ['sgd', 'adam']", "compare.num_seeds = 1"]
    run_compare(tmp_path, *source)
    rows = rows_of(tmp_path / "out")
    assert [row["source_before"] for row in rows] == ["", ""] and {row["state"] for row in rows} == {"finished"}


@pytest.mark.full
def test_members_with_lora_and_phases_are_compared_but_not_where_a_penalty_is_of_other_variables(tmp_path, capsys):
    members = [
        "compare.members = ['sgd', 'swap', 'lowrank']", "compare.num_seeds = 1", "swap/Finetune.phases = [@phase()]",
        "swap/phase.optimizer = @Adam", "swap/phase.start = 10", "swap/Adam.learning_rate = 0.01",
        "lowrank/Finetune.lora = @lora()", "lowrank/lora.rank = 1",
    ]  # fmt: skip
    text = "\n".join(line for line in CONFIG.splitlines() if not line.startswith(("adam/", "rmsprop/")))
    assert run_compare(tmp_path, *members, text=text) == 0
    reported = capsys.readouterr().out
    assert (
        "SGD, then Adam" in reported and "Proved: for each seed all members had the same metrics at step 0" in reported
    )
    with pytest.raises(trainer.UserError, match="do not start alike.*: regularized variables"):
        run_compare(tmp_path / "other", *members, "MODEL = @penalized", text=IMPORT + text)


def test_starts_that_differ_by_rounding_alone_are_not_called_the_same_bits():
    def result(member, loss):
        return Result(member, 0, RunRecord(state="finished"), start={"step": 0, "loss": loss})

    (sentence,) = starts_alike(plan_of(seeds=1), [result("a", 1.0), result("b", 1.0 + 1e-7)])
    assert "but for rounding" in sentence and "bit for bit" not in sentence
    assert "NOT THE SAME START" in starts_alike(plan_of(seeds=1), [result("a", 1.0), result("b", 1.1)])[0]


def test_unlike_starts_are_reported_before_all_else():
    runs = [
        Result(m, 0, RunRecord(state="finished"), start={"step": 0, "loss": v}) for m, v in (("a", 1.0), ("b", 2.0))
    ]
    assert starts_alike(plan_of(), runs)[0].startswith("NOT THE SAME START with seed 0")


def test_the_table_shows_mean_and_range_by_hand():
    runs = results_of(a=[0.5, 0.6, 0.7], b=[0.25, 0.25, 0.25])
    rows = {cells[0]: cells[1:] for cells in table_rows(plan_of(), runs)}
    assert rows["accuracy at step 100"] == ["0.600 (0.500 to 0.700)", "0.250"]
    assert "accuracy at step 0" not in rows, "no one evaluated it"


def test_steps_to_a_target_say_how_many_runs_reached_it():
    runs = [
        Result("a", seed, RunRecord(state="finished"), steps_to_target=steps, evaluations=[(0, 0.1)])
        for seed, steps in enumerate([20, None, 40])
    ] + [Result("b", 0, RunRecord(state="finished"), evaluations=[(0, 0.1)])]  # fmt: skip
    rows = {cells[0]: cells[1:] for cells in table_rows(plan_of(target=0.8), runs)}
    assert rows["steps to accuracy 0.8"] == ["30 (20 to 40), 2 of 3 runs", "not reached"]


def test_progress_is_read_from_a_log_behind_what_an_earlier_process_wrote(tmp_path):
    old = "step 40/100  training loss 1.0  9 steps/s\n"
    (tmp_path / "log.txt").write_text(old + "restore x\n")
    assert progress_in(tmp_path / "log.txt") == (40, "training loss 1.0  9 steps/s")
    assert progress_in(tmp_path / "log.txt", len(old)) == (0, "")
    with open(tmp_path / "log.txt", "a") as file:
        file.write("step 60/100  training loss 0.5  9 steps/s\nETA\n")
    assert progress_in(tmp_path / "log.txt", len(old))[0] == 60
    assert progress_in(tmp_path / "none.txt") == (0, "")


# The command


LONG = [
    f"--gin_param={binding}"
    for binding in (
        "NUM_STEPS = 500", "Intervals.eval_every = 125", "Intervals.checkpoint_every = 50",
        "Intervals.steps_per_loop = 10",
        *ONE_SEED,
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Two runs, in each of which there are many moments for a signal to come."""
    path = tmp_path_factory.mktemp("config") / "compare.gin"
    path.write_text(CONFIG)
    return ["launch.compare", f"--gin_file={path}", *LONG]


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    done = run_command(*command, f"--model_dir={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" finished (") == 2 and "run 2/2    adam/seed_0 begins" in done.stdout
    return out


def interrupted(command, model_dir, number, run="adam/seed_0"):
    """Signals the command once a run has a checkpoint; returns exit status and text."""
    process = start_command(*command, f"--model_dir={model_dir}", stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 600
    while not list((model_dir / run / "checkpoints").glob("ckpt-*.manifest.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


@pytest.mark.full
def test_killed_in_the_middle_and_started_again_it_ends_with_the_same_numbers(command, unbroken, tmp_path):
    status, text = interrupted(command, tmp_path / "out", signal.SIGKILL)
    assert status == -signal.SIGKILL, text
    records = [json.loads(path.read_text())["state"] for path in tmp_path.glob("out/*/*/comparison_record.json")]
    assert sorted(records) == ["finished", "running"]
    again = run_command(*command, f"--model_dir={tmp_path / 'out'}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" begins") == 1, "what was finished is not made again"
    assert "resumed " in (tmp_path / "out/adam/seed_0/log.txt").read_text()
    assert rows_of(tmp_path / "out") == rows_of(unbroken)
    assert (
        "Killed and gone on with, so that their whole time is not known: adam/seed_0"
        in (tmp_path / "out/comparison.md").read_text()
    )


@pytest.mark.full
def test_a_signal_saves_the_run_exits_75_and_the_same_command_continues(command, unbroken, tmp_path):
    status, text = interrupted(command, tmp_path / "out", signal.SIGTERM)
    assert status == 75 and "Run the same command again" in text, text
    assert "runs are still to be made; nothing is concluded yet" in (tmp_path / "out/comparison.md").read_text()
    again = run_command(*command, f"--model_dir={tmp_path / 'out'}")
    assert again.returncode == 0, again.stderr
    assert rows_of(tmp_path / "out") == rows_of(unbroken)


@pytest.mark.full
def test_processes_at_a_time_reach_the_same_numbers_and_a_signal_to_them_all_is_resumed(command, unbroken, tmp_path):
    parallel = [*command, "--parallel=2"]
    status, text = interrupted(parallel, tmp_path / "out", signal.SIGINT, run="sgd/seed_0")
    assert status == 75, text
    again = run_command(*parallel, f"--model_dir={tmp_path / 'out'}")
    assert again.returncode == 0, again.stderr + again.stdout
    assert rows_of(tmp_path / "out") == rows_of(unbroken)
    assert weights_in(tmp_path / "out/adam/seed_0/final.weights.h5") == weights_in(
        unbroken / "adam/seed_0/final.weights.h5"
    )
    assert "Runs went 2 at a time" in (tmp_path / "out/comparison.md").read_text()


@pytest.mark.full
def test_a_mistake_is_one_message_and_2_and_leaves_nothing_also_in_parallel(command, tmp_path):
    done = run_command(*command, "--gin_param=adam/MODEL = @small_cnn", f"--model_dir={tmp_path / 'out'}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("regraft: The members of a comparison may differ in what optimizes")
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    done = run_command(
        *command, "--parallel=2", "--gin_param=compare.metric = 'los'", f"--model_dir={tmp_path / 'out'}"
    )
    assert done.returncode == 2 and "Did you mean 'loss'?" in done.stderr and "Traceback" not in done.stderr
