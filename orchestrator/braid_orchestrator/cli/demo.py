"""`braid demo`: from nothing to specialised models and their braid, asked over HTTP and compared."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from braid_orchestrator.cli.console import err, out, print_json
from braid_orchestrator.cli.options import JsonOption

if TYPE_CHECKING:
    from braid_orchestrator.http.native_schemas import GenerateOut


class Which(StrEnum):
    """The braids that are there to be built."""

    DEMO = "demo"
    MIXED = "mixed"


PROMPT = '''def read_lines(path):
    """Open the file and return a list of'''


def demo(
    which: Annotated[
        Which,
        typer.Option("--braid", help="demo: two models of one tokenizer. mixed: three of three tokenizers."),
    ] = Which.DEMO,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="A file of one's own over the same shards; else the braid's in deploy/."
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What the braid goes on with.")] = PROMPT,
    max_tokens: Annotated[int, typer.Option()] = 80,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="Build the models, serve nothing.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train for seconds: worse models, same steps.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Serve on plain processes instead of Ray.")] = False,
    json: JsonOption = False,
) -> None:
    """Build small language models and their braid once, serve them, ask, compare, shut down.

    One model has read the standard library's source, the other its prose; with `--braid mixed` each has a tokenizer
    of its own, and a third reads both byte by byte. What connects them is trained as `braid train` does, against the
    models as services. Minutes the first time, then seconds.

    Examples:

    - `braid demo`

    - `braid demo --prompt "import os" --max-tokens 100`

    - `braid demo --build-only`

    - `braid demo --braid mixed`
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' bars would break into ours
    from braid_orchestrator.cli.demo_service import running_service
    from braid_orchestrator.config.schema import load_braid_config, load_endpoints
    from braid_orchestrator.demo.build import build_demo
    from braid_orchestrator.demo.recipe import DEMOS
    from braid_orchestrator.demo.table import bits_per_byte_table, gains, share_table
    from braid_orchestrator.serving.signals import ended_by_signals

    chosen = DEMOS[which.value]
    file, folder = config or Path(chosen.config), Path(chosen.folder)
    braid = load_braid_config(file, os.environ)
    endpoints = load_endpoints(file)
    built = build_demo(folder, err, config=braid, recipe=chosen.quick if quick else chosen.full)
    if built.cached:
        err.print(f"the demo's models are in {folder} already", highlight=False)
    if build_only:
        return
    with ended_by_signals(), running_service(file, endpoints, folder / "serve.log", plain=plain):
        url = f"http://127.0.0.1:{endpoints.http_port}"
        answer = _ask(url, prompt, max_tokens, show=not json)
    figures = built.bits_per_byte
    if json:
        completion = answer.model_dump(exclude_unset=True)
        print_json(built.to_dict() | {"gains": gains(figures), "completion": completion})
        return
    out.print(share_table(answer.weights))
    out.print()
    out.print(bits_per_byte_table(figures))


def _ask(url: str, prompt: str, max_tokens: int, *, show: bool) -> GenerateOut:
    """Stream a completion over HTTP, each token in the colour of the shard that had most in it."""
    from braid_orchestrator.cli.asking import HttpBraid
    from braid_orchestrator.demo.table import coloured_tokens
    from braid_orchestrator.engine.requests import (
        ChoiceFinished,
        GenerateRequest,
        SamplingOptions,
        TokenEvent,
    )
    from braid_orchestrator.http.answers import answer
    from braid_orchestrator.http.collecting import Collector

    request = GenerateRequest(
        prompt, SamplingOptions(max_tokens=max_tokens, temperature=0.7, top_p=0.95, seed=7)
    )
    collector = Collector(1)
    braid = HttpBraid(url)
    if show:
        out.rule(f"POST {escape(url)}/generate, streamed")
        out.print(Text(prompt, "dim"), end="")
    try:
        for event in braid.stream(request, None):
            collector.add(event)
            if show and isinstance(event, TokenEvent):
                out.print(coloured_tokens([(event.text, event.weights)]), end="", soft_wrap=True)
            elif show and isinstance(event, ChoiceFinished):
                out.print(Text(event.text), soft_wrap=True)
    finally:
        braid.close()
    if show:
        out.rule()
    return answer(collector.result(), braid.model, braided=braid.braided)
