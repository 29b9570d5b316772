"""Writes what a comparison has seen so far: comparison.md, .csv, .png and .html, each whole or not at all."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from trainer.comparison.folder import ComparisonDir, name_of
from trainer.comparison.page import html_page
from trainer.comparison.picture import draw_comparison
from trainer.comparison.plan import Plan
from trainer.comparison.results import Result
from trainer.comparison.spread import starts_alike, verdict
from trainer.comparison.table import csv_text, markdown_table, table_rows
from trainer.output.atomic_files import replacing, write_text


def write_report(plan: Plan, files: ComparisonDir, results: Sequence[Result]) -> None:
    with replacing(files.picture) as temporary:
        draw_comparison(plan, results, temporary)
    title, sentences = f"Comparison of {', '.join(plan.members)}", sentences_of(plan, results)
    rows, notes = table_rows(plan, results), notes_of(plan, results)
    bindings = [(member, lines_of(plan, member)) for member in plan.members]
    write_text(files.csv, csv_text(plan, results))
    write_text(files.page, html_page(title, sentences, rows, files.picture.read_bytes(), bindings, notes))
    members = "\n".join(f"{member}\n\n```\n{lines}\n```\n" for member, lines in bindings)
    write_text(
        files.markdown,
        f"# {title}\n\n{_list(sentences)}\n\n{markdown_table(rows)}\n\n"
        f"![learning curves]({files.picture.name})\n\n"
        f"## What differs between the members\n\n{members}\n## How to read it\n\n{_list(notes)}\n",
    )


def terminal_table(plan: Plan, results: Sequence[Result]) -> Table:
    header, *rows = table_rows(plan, results)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left", overflow="fold", no_wrap=not index)
    for cells in rows:
        table.add_row(*cells)
    return table


def sentences_of(plan: Plan, results: Sequence[Result]) -> list[str]:
    """The conclusions from the results; while runs are missing, that comes first and no order is claimed."""
    alike = starts_alike(plan, results)
    faults = [sentence for sentence in alike if sentence.startswith("NOT")]
    failed = [
        f"{name_of(result.member, result.seed)} failed: {result.record.message}"
        for result in results
        if result.record and result.state == "failed"
    ]
    unfinished = [result for result in results if result.record is None or not result.record.is_done]
    if unfinished:
        missing = f"{len(unfinished)} of {len(results)} runs are still to be made; nothing is concluded yet."
        return [*faults, missing, *failed, *([] if faults else alike)]
    return [*faults] if faults else [*verdict(plan, results), *alike]


def lines_of(plan: Plan, member: str) -> str:
    """The bindings of one member, as lines of gin."""
    return "\n".join(f"{name} = {value}" for name, value in plan.bindings[member].items())


def notes_of(plan: Plan, results: Sequence[Result]) -> list[str]:
    """Notes on how to read the numbers."""
    records = [result.record for result in results if result.record]
    count = len(plan.seeds)
    notes = [
        f"Numbers are the mean over {count} seeds, in brackets the lowest and the highest; members share the seeds "
        f"{', '.join(map(str, plan.seeds))}, which decide data order and fresh weights."
        if count > 1
        else "There is one seed, and so no spread.",
        "Best is over all evaluations, that of step 0 included, on the very data that it is reported on: it flatters.",
        "What is compared are these configs, rates and all: the same optimizer with another rate is another member. "
        "The whole config of a run is its operative_config.gin.",
        "Seconds are of the whole run with building, compiling and evaluating; examples a second of training alone.",
    ]
    examples = {run.start["num_examples"] for run in results if "num_examples" in run.start}
    if examples:
        notes.append(
            f"The ranges tell what the seeds change; that the {max(examples):,.0f} evaluation examples are a sample, "
            "too, is not in them."
        )
    source = next((record.source_data for record in records if record.source_data), "")
    if source:
        notes.append(f"Source is {source}, before the first step and after the last; forgotten is the difference.")
    together = max((record.at_a_time for record in records), default=1)
    if together > 1:
        notes.append(f"Runs went {together} at a time and shared the machine: their times are longer than alone.")
    elif any(record.peak_memory_bytes is not None for record in records):
        notes.append(
            "Peak memory is the process's: runs that follow others in it also hold what those left. --parallel=1 "
            "gives each run a process of its own."
        )
    broken = [name_of(r.member, r.seed) for r in results if r.record and not r.record.whole_wall_seconds]
    if broken:
        notes.append(f"Killed and gone on with, so that their whole time is not known: {', '.join(broken)}.")
    for result in results:
        if result.record and result.state != "failed" and result.record.message:
            notes.append(f"{name_of(result.member, result.seed)}: {result.record.message}")
    return notes


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(sentence.split())}" for sentence in sentences)
