"""`braid train-decider`: a classifier that decides who answers, from texts. Knows no training loop."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from braid_orchestrator.cli.benching import progress_bar
from braid_orchestrator.cli.console import err, print_json
from braid_orchestrator.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from braid_orchestrator.inprocess.deciding import DeciderReport


def train_decider(
    texts: Annotated[
        list[Path],
        typer.Argument(
            exists=True,
            dir_okay=False,
            help='One text per line; in files that end in .jsonl `{"text": "…"}`, perhaps with `"answer"`: true, '
            "false or a shard's name.",
        ),
    ],
    into: Annotated[Path, typer.Option(file_okay=False, help="The classifier's folder.")],
    config: ConfigOption = Path("deploy/braid.yaml"),
    margin: Annotated[
        float, typer.Option(help="Bits per byte that the braid has to gain over the best shard.")
    ] = 0.02,
    held_out: Annotated[
        float,
        typer.Option(min=0.0, max=0.9, help="Share of the texts that only tell how often it is right."),
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of those.")] = 0,
    json: JsonOption = False,
) -> None:
    """Learn who is to answer which prompt: the braid, or one of its shards alone.

    Each text is measured with the braid and with every shard, which takes a forward of each; texts that come with
    an answer are not, and no model is loaded.

    Then `decide: .braid/demo/decider/` under `braiding` in the configuration uses it.

    Examples:

    - `braid train-decider prompts.txt --into .braid/demo/decider`

    - `braid train-decider code.jsonl prose.jsonl --into .braid/demo/decider --held-out 0.3`
    """
    from braid_fusion.deciding import check_classifier_folder, save_classifier
    from braid_orchestrator.config.files import locate_files
    from braid_orchestrator.config.schema import load_braid_config
    from braid_orchestrator.config.values import BraidingConfig
    from braid_orchestrator.inprocess.braided import BraidedLLM
    from braid_orchestrator.inprocess.decider_examples import read_examples
    from braid_orchestrator.inprocess.deciding import check_decider, measured_answers
    from braid_services.fusion.translation import braid_errors

    # What the file says to decide by may be what is to be made here.
    braid = replace(load_braid_config(config, os.environ), braiding=BraidingConfig())
    with braid_errors():
        check_classifier_folder(into)
    examples, answers = read_examples(texts, [shard.name for shard in braid.shards])
    hashes: dict[str, str] = {}
    if answers is None:
        with BraidedLLM.from_config(locate_files(braid)) as braided, progress_bar() as progress:
            answers, hashes = measured_answers(braided, examples, margin, progress)
    with braid_errors():
        classifier, report = check_decider(
            examples, answers, held_out=held_out, seed=seed, model_hashes=hashes
        )
        save_classifier(classifier, into, asdict(report))
    if json:
        print_json(asdict(report))
    else:
        _show(report, into)


def _show(report: DeciderReport, into: Path) -> None:
    counts = ", ".join(f"{who} {count}" for who, count in report.answers.items())
    err.print(f"who should answer: {counts}", highlight=False)
    if report.accuracy is not None:
        err.print(
            f"right on {report.accuracy:.0%} of {report.num_held_out} texts that it had not seen; always naming the "
            f"same one is on {report.baseline:.0%}",
            highlight=False,
            soft_wrap=True,
        )
    err.print(f"written to {into}", highlight=False, soft_wrap=True)
