"""`braid generate`: a prompt gone on with, streamed to the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from braid_orchestrator.cli.console import err, print_json
from braid_orchestrator.cli.options import DEFAULT_TARGET, ConfigOption, JsonOption, TargetOption

if TYPE_CHECKING:
    from braid_orchestrator.http.stability_schemas import ChoiceStabilityOut

_BRAIDING: dict[str | None, bool | Literal["auto"] | None] = {
    None: None,
    "true": True,
    "false": False,
    "auto": "auto",
}


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to go on with; `-` reads it from stdin.")],
    target: TargetOption = DEFAULT_TARGET,
    local: Annotated[
        bool, typer.Option("--local", help="Load the models of --config in this process.")
    ] = False,
    config: ConfigOption = Path("deploy/braid.yaml"),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A shard's name: it answers alone.")
    ] = None,
    use_braiding: Annotated[
        str | None,
        typer.Option(
            metavar="true|false|auto",
            help="false: one shard answers alone; auto: what the braid has for it decides. Else its default.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the completion; repeatable.")] = None,
    stability: Annotated[bool, typer.Option("--stability", help="Tell how stable the text is.")] = False,
    stop_on_instability: Annotated[
        bool, typer.Option("--stop-on-instability", help="End the text where it is sure that it diverges.")
    ] = False,
    auto_temperature: Annotated[
        bool,
        typer.Option("--auto-temperature", help="Lower the temperature while the text gets less stable."),
    ] = False,
    choices: Annotated[int, typer.Option(help="How many completions; with --json only.")] = 1,
    logprobs: Annotated[int | None, typer.Option(help="Alternatives per token; with --json only.")] = None,
    json: JsonOption = False,
) -> None:
    """Go on with a prompt: the text goes to stdout as it comes, figures to stderr.

    Examples:

    - `braid generate "def add(a, b):" --temperature 0`

    - `braid generate "Once upon a time" --model prose --max-tokens 64 --seed 7`

    - `echo "import os" | braid generate - --target 127.0.0.1:9000 --json`

    - `braid generate "class Stack:" --local --config deploy/braid.yaml`
    """
    from braid_orchestrator.cli.asking import Braid, LocalBraid, find_braid
    from braid_orchestrator.engine.requests import (
        ChoiceFinished,
        GenerateRequest,
        SamplingOptions,
        TokenEvent,
    )
    from braid_orchestrator.http.answers import answer
    from braid_orchestrator.http.collecting import Collector
    from braid_rpc.errors import InvalidRequestError
    from braid_rpc.stability import StabilityOptions

    if not json and (choices != 1 or logprobs is not None):
        raise InvalidRequestError("--choices and --logprobs: expected together with --json only")
    sampling = SamplingOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        logprobs=logprobs,
    )
    if use_braiding not in _BRAIDING:
        raise InvalidRequestError(
            f"--use-braiding: got {use_braiding!r}, expected one of {', '.join(filter(None, _BRAIDING))}"
        )
    text = sys.stdin.read() if prompt == "-" else prompt
    watched = stability or stop_on_instability or auto_temperature
    request = GenerateRequest(
        text,
        sampling,
        n=choices,
        use_braiding=_BRAIDING[use_braiding],
        stability=StabilityOptions(stop_on_instability, auto_temperature) if watched else None,
    )
    request.validate()
    braid: Braid
    if local:
        from braid_orchestrator.config.files import locate_files
        from braid_orchestrator.config.schema import load_braid_config

        with err.status("loading the models …"):
            braid = LocalBraid(locate_files(load_braid_config(config, os.environ)))
    else:
        braid = find_braid(target)
    collector = Collector(choices)
    try:
        for event in braid.stream(request, model):
            collector.add(event)
            if not json and isinstance(event, TokenEvent | ChoiceFinished):
                sys.stdout.write(event.text)
                sys.stdout.flush()
    finally:
        braid.close()
    result = answer(collector.result(), braid.model, braided=braid.braided)
    if json:
        print_json(result.model_dump(exclude_unset=True))
        return
    sys.stdout.write("\n")
    shares = ", ".join(f"{shard} {weight:.0%}" for shard, weight in result.weights.items())
    timings, made = result.timings, result.usage.completion_tokens
    err.print(
        f"[dim]{made} tokens in {timings.total_s:.2f} s, the first after {timings.time_to_first_token_s:.2f} s; "
        f"{result.finish_reason}; {result.answered_by}'s weights: {shares or 'none'}{_told(result.stability)}[/]",
        soft_wrap=True,
        highlight=False,
    )


def _told(stability: ChoiceStabilityOut | None) -> str:
    """How stable the text is, in a few words; nothing if that was not asked for."""
    if stability is None:
        return ""
    figures = {
        "entropy slope": stability.lyapunov_estimate,
        "mean coherence": stability.mean_coherence,
    }
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
    return f"; {'stable' if stability.is_stable else 'unstable'}{f' ({told})' if told else ''}"
