"""`braid demo`: from nothing to two specialised models and their braid, asked over HTTP and compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from braid_orchestrator.cli.console import err, out, print_json
from braid_orchestrator.cli.options import ConfigOption, JsonOption

PROMPT = '''def read_lines(path):
    """Read the file and return'''


def demo(
    config: ConfigOption = Path("deploy/braid.yaml"),
    folder: Annotated[Path, typer.Option(help="Where the models are built and kept.")] = Path(".braid/demo"),
    prompt: Annotated[str, typer.Option(help="What the braid goes on with.")] = PROMPT,
    max_tokens: Annotated[int, typer.Option()] = 64,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="Build the models, serve nothing.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train for seconds: worse models, same steps.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Serve on plain processes instead of Ray.")] = False,
    json: JsonOption = False,
) -> None:
    """Build two small language models and their braid once, serve them, ask, compare, shut down.

    One model has read the standard library's source, the other its prose. Minutes the first time, then seconds.

    Examples:

    - `braid demo`

    - `braid demo --prompt "import os" --max-tokens 100`

    - `braid demo --build-only`
    """
    from braid_orchestrator.cli.asking import HttpBraid
    from braid_orchestrator.cli.demo_service import running_service
    from braid_orchestrator.config_schema import load_endpoints
    from braid_orchestrator.demo.build import build_demo
    from braid_orchestrator.http.answers import answer
    from braid_orchestrator.http.collecting import Collector
    from braid_orchestrator.requests import ChoiceFinished, GenerateRequest, SamplingOptions, TokenEvent

    figures = build_demo(folder, err, quick=quick)
    if build_only:
        return
    endpoints = load_endpoints(config)
    with running_service(config, endpoints, folder / "serve.log", plain=plain):
        braid = HttpBraid(f"http://127.0.0.1:{endpoints.http_port}")
        collector = Collector(1)
        sampling = SamplingOptions(max_tokens=max_tokens, temperature=0.7, top_p=0.95, seed=7)
        show = not json
        if show:
            out.rule("the braid, over HTTP")
            out.print(prompt, end="", style="dim", highlight=False, markup=False)
        try:
            for event in braid.stream(GenerateRequest(prompt, sampling), None):
                collector.add(event)
                if show and isinstance(event, TokenEvent | ChoiceFinished):
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
        finally:
            braid.close()
    result = answer(collector.result(), braid.model)
    if json:
        print_json({"bits_per_byte": figures, "completion": result.model_dump()})
        return
    sys.stdout.write("\n")
    out.rule()
    out.print(_table(figures))
    out.print(_shares(result.weights))


def _table(figures: object) -> Table:
    table = Table(title="bits per byte on held-out text (lower is better)")
    return table


def _shares(weights: dict[str, float]) -> Table:
    table = Table("shard", "share in the completion", title="what each shard contributed")
    for shard, weight in weights.items():
        table.add_row(shard, f"{weight:6.1%}")
    return table
