"""`rpla bench`: measure this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rpla.bench.result import Result
from rpla.cli.output import print_json, print_table, say

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)

_SECTIONS = ("overhead", "model", "startup", "batch")


@app.callback()
def benchmarks() -> None:
    """Measure speed on this machine."""


@app.command()
def chat(
    section: Annotated[
        list[str] | None, typer.Option(help="overhead, model, batch or startup; all but batch where none is given.")
    ] = None,
    model: Annotated[str, typer.Option(help="The llamacpp: model of the section model.")] = "llamacpp:smollm2-135m",
    hf: Annotated[str, typer.Option(help="The hf: model of the section batch.")] = "",
    dtype: Annotated[str, typer.Option(help="Its number format: auto, bfloat16 or float32.")] = "auto",
    turns: Annotated[int, typer.Option(help="Turns of the section overhead.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a turn's overhead, the model's cache, batches and start-up."""
    from rpla.core.errors import RplaError

    sections = section or [name for name in _SECTIONS if name != "batch"]
    if unknown := [name for name in sections if name not in _SECTIONS]:
        raise RplaError(f"Unknown section {unknown[0]!r}.", f"Sections: {', '.join(_SECTIONS)}.")
    if "batch" in sections and not hf:
        raise RplaError("The section batch needs an hf: model.", "--hf hf:FOLDER")
    if turns < 40:
        raise RplaError("Growth over fewer than 40 turns says nothing.", "--turns 1000")
    results: list[Result] = []
    for name in sections:
        say(f"{name} …")
        match name:
            case "overhead":
                from rpla.bench.overhead import measure_overhead

                results += measure_overhead(turns)
            case "model":
                from rpla.bench.model import measure_model

                results += measure_model(model, turns=30)
            case "batch":
                from rpla.bench.batch import measure_batch

                results += measure_batch(hf, dtype)
            case "startup":
                from rpla.bench.startup import measure_startup

                results += measure_startup()
    _show(results, as_json)


@app.command()
def memory(
    section: Annotated[
        list[str] | None,
        typer.Option(
            help="locomo, scale, turn, hygiene, knowledge or reflection; where none is given, all whose data is."
        ),
    ] = None,
    locomo: Annotated[Path | None, typer.Option(help="LoCoMo's JSON file, for the section locomo.")] = None,
    texts: Annotated[Path | None, typer.Option(help="A folder of novels, for the section scale.")] = None,
    character100: Annotated[Path | None, typer.Option(help="Character100's folder, for the section knowledge.")] = None,
    novel: Annotated[Path | None, typer.Option(help="A novel, for the section knowledge.")] = None,
    size: Annotated[int, typer.Option(help="Memories of the section scale.")] = 100_000,
    memories: Annotated[int, typer.Option(min=0, max=6_000, help="Memories of the section turn.")] = 5_000,
    turns: Annotated[int, typer.Option(min=1, help="Turns of the section turn.")] = 200,
    model: Annotated[str, typer.Option(help="A llamacpp: model, to see in the section turn what it reads anew.")] = "",
    embedder: Annotated[str, typer.Option(help="minilm, hashing, or a sentence-transformers folder.")] = "minilm",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how well characters remember, and what it costs."""
    from rpla.bench.memory import MemoryBench

    bench = MemoryBench(
        embedder=embedder,
        locomo=locomo,
        texts=texts,
        character100=character100,
        novel=novel,
        size=size,
        memories=memories,
        turns=turns,
        model=model,
    )
    results: list[Result] = []
    for name in bench.sections(section):
        say(f"{name} …")
        results += bench.measure(name)
    _show(results, as_json)


def _show(results: Sequence[Result], as_json: bool) -> None:
    if as_json:
        print_json({result.name: round(result.value, 4) for result in results})
    else:
        print_table(("figure", "value", "target"), [(r.name, f"{r.value:.3g}", r.target) for r in results])
