"""Training of a `BraidedLLM`'s fusion modules and readout on texts in memory: `braid train`'s own loss and batches,
over the models of this process. Writes no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from braid_fusion.training import Progress, Trainer, TrainingRecord
from braid_orchestrator.training.data import (
    Document,
    DocumentEncoder,
    MemorySource,
    TextBatches,
    TokenCorpus,
    encode_source,
)
from braid_orchestrator.training.local import LocalTrainingShard
from braid_orchestrator.training.loss import Batch, braid_loss, check_shards
from braid_orchestrator.training.run import RunOptions, check_window
from braid_rpc.errors import InvalidRequestError

if TYPE_CHECKING:
    from braid_orchestrator.inprocess.braided import BraidedLLM


def train_fusion_layers(
    braided: BraidedLLM,
    texts: Sequence[str],
    *,
    num_steps: int = 200,
    learning_rate: float = 3e-3,
    window: int = 128,
    batch_size: int = 8,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingRecord:
    """Train a braid's fusion modules and readout on texts, in place.

    Args:
        texts: must together have at least two tokens.
        window: tokens that are run as one sequence, ``batch_size`` of them per step; as many as there are where the
            texts have fewer.

    Raises: InvalidRequestError for too little text; UnsupportedModelError for models without gradients;
        ContextLengthError; TrainingError, as for nothing to train.
    """
    corpus = _corpus(braided, texts)
    window = min(window, max(corpus.num_tokens - 1, 1))
    shards = [LocalTrainingShard(backend) for backend in braided.backends]
    try:
        check_shards(shards, braided.plan)
        check_window(shards, braided.plan, window)
        trainer: Trainer[Batch] = Trainer(
            braided.stack,
            braid_loss(shards, braided.stack),
            TextBatches(corpus, window, batch_size, seed),
            RunOptions(steps=num_steps, learning_rate=learning_rate, seed=seed).trainer_config(
                has_held_out=False
            ),
            on_progress=on_progress,
        )
        return trainer.run()
    finally:
        for shard in shards:
            shard.shutdown()


def _corpus(braided: BraidedLLM, texts: Sequence[str]) -> TokenCorpus:
    if isinstance(texts, str) or not texts:
        raise InvalidRequestError(
            f"texts: got {'a single text' if texts else 'none'}, expected a list of at least one"
        )
    anchor = braided.backends[braided.plan.anchor]
    encoder = DocumentEncoder(anchor.tokenizer_json(), anchor.card.eos_token_ids)
    documents = [Document(f"texts[{index}]", text, None, len(text)) for index, text in enumerate(texts)]
    return encode_source(MemorySource("texts", documents), encoder, max_example_tokens=0)
