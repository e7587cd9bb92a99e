"""`/tokenize`, `/detokenize` and `/tokenizer_info`: the tokenizer of the anchor, or of the shard that is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from braid_orchestrator.http.chat_schemas import Message
from braid_orchestrator.http.native_schemas import ERROR_RESPONSES, Strict
from braid_orchestrator.serving.model_selection import select_model
from braid_orchestrator.serving.port import BraidPort
from braid_orchestrator.serving.shard_text import ShardText
from braid_rpc.errors import InvalidRequestError


class TokenizeBody(Strict):
    """A text, or a conversation that the chat template makes one of."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message] | None, Field(min_length=1)] = None
    add_special_tokens: Annotated[
        bool | None, Field(description="null: true for a prompt, false for messages")
    ] = None
    return_token_strs: bool | None = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: None = None


class TokenizeOut(BaseModel):
    """The tokens, and how many may be asked for at most."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeBody(Strict):
    """Token ids."""

    model: str | None = None
    tokens: list[int]


class DetokenizeOut(BaseModel):
    """Their text, special tokens included."""

    prompt: str


class TokenizerInfoOut(BaseModel):
    """What programs that bring no tokenizer of their own need to know of this one."""

    model: str
    vocab_size: int
    max_model_len: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


def tokenizing_routes(get_service: Callable[[], BraidPort]) -> APIRouter:
    """The routes over whichever service there is at the time of a request."""
    router = APIRouter(tags=["tokenizer"], responses=ERROR_RESPONSES)

    @router.post("/tokenize", response_model=TokenizeOut)
    async def tokenize(body: TokenizeBody) -> TokenizeOut:
        """A text's token ids."""
        text, context = _select(get_service(), body.model)
        if (body.prompt is None) == (body.messages is None):
            got = "neither prompt nor messages" if body.prompt is None else "prompt and messages"
            raise InvalidRequestError(f"prompt: got {got}, expected one of them")
        return await asyncio.to_thread(_tokenize, text, context, body)

    @router.post("/detokenize", response_model=DetokenizeOut)
    async def detokenize(body: DetokenizeBody) -> DetokenizeOut:
        """The text of token ids."""
        text, _ = _select(get_service(), body.model)
        return DetokenizeOut(prompt=await asyncio.to_thread(text.decode, body.tokens))

    @router.get("/tokenizer_info", response_model=TokenizerInfoOut)
    async def tokenizer_info(model: str | None = None) -> TokenizerInfoOut:
        """Special tokens, sizes and chat template."""
        text, context = _select(get_service(), model)
        special = text.special_tokens
        return TokenizerInfoOut(
            model=text.shard,
            vocab_size=text.vocab_size,
            max_model_len=context,
            bos_token=special.get("bos_token"),
            eos_token=special.get("eos_token"),
            pad_token=special.get("pad_token"),
            unk_token=special.get("unk_token"),
            chat_template=text.chat_template or None,
        )

    return router


def _select(service: BraidPort, model: str | None) -> tuple[ShardText, int]:
    """The tokenizer meant, and how many tokens a request may have in all."""
    description = service.describe()
    shards = [shard.name for shard in description.shards]
    use_braiding, shard = select_model(model, None, None, braid=service.name, shards=shards)
    text = service.text(shard)
    return text, description.context_length if use_braiding is not False else text.context_length


def _tokenize(text: ShardText, context: int, body: TokenizeBody) -> TokenizeOut:
    if body.messages is None:
        prompt, special = body.prompt or "", body.add_special_tokens is not False
    else:
        prompt = text.render(
            [message.for_template() for message in body.messages],
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
            variables=body.chat_template_kwargs,
        )
        special = bool(body.add_special_tokens)
    token_ids = list(text.encode(prompt, add_special_tokens=special).token_ids)
    return TokenizeOut(
        count=len(token_ids),
        max_model_len=context,
        tokens=token_ids,
        token_strs=text.names(token_ids) if body.return_token_strs else None,
    )
