"""Text as one shard has it: its tokenizer, and its chat template. Knows no engine and no transport."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from braid_orchestrator.engine.text import Encoded, IncrementalDecoder, TextCodec
from braid_rpc.cards import ChatFormat, ShardCard
from braid_rpc.errors import ContextLengthError, InvalidRequestError

_RENDERER_ARGUMENTS = frozenset(inspect.signature(render_jinja_template).parameters) | {"messages"}


class ShardText:
    """What a user may ask of a shard's tokenizer. Safe to use from several threads; blocks while it works."""

    def __init__(self, card: ShardCard, codec: TextCodec, chat: ChatFormat) -> None:
        self.shard = card.name
        self.context_length = card.context_length
        self.vocab_size = card.vocab_size
        self._codec = codec
        self._chat = chat

    @property
    def chat_template(self) -> str:
        """As Jinja; empty: there is none, so `render` can't succeed."""
        return self._chat.template

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """``bos_token``, ``eos_token`` and their like, as far as there are any."""
        return self._chat.special_tokens

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoded:
        """The text's tokens with their character offsets.

        Raises: InvalidRequestError for a lone surrogate, ContextLengthError for what is far beyond the context.
        """
        limit = self.context_length * self._codec.longest_token
        if len(text) > limit:
            raise ContextLengthError(
                f"prompt: got {len(text)} characters, expected at most {limit}: "
                f"{self.context_length} tokens of at most {self._codec.longest_token}"
            )
        return self._codec.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special ones included. Raises: InvalidRequestError for an id out of range."""
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequestError(
                    f"tokens: got token id {token_id}, expected between 0 and {self.vocab_size - 1}"
                )
        return self._codec.decode(token_ids, keep_special_tokens=True)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of the ids in pieces, one for each: what becomes certain with it, so perhaps nothing. Special
        tokens have none."""
        decoder = IncrementalDecoder(self._codec, ())
        pieces = [decoder.push(token_id) for token_id in token_ids]
        if pieces:
            pieces[-1] += decoder.flush()
        return pieces

    def names(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token on its own, special tokens by their name."""
        return [self._codec.token_name(token_id) for token_id in token_ids]

    def token_bytes(self, token_id: int) -> list[int] | None:
        """The UTF-8 bytes of one token's text, also where they are but a part of a character; None if the tokenizer
        doesn't tell."""
        return self._codec.token_bytes(token_id)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as one text, by transformers' own renderer (sandboxed Jinja). ``variables`` are whatever
        else the template may name.

        Raises: InvalidRequestError if there is no template, or it refuses the messages.
        """
        if not self._chat.template:
            raise InvalidRequestError(
                f"messages: the tokenizer of shard {self.shard!r} has no chat template; "
                "expected a prompt for /v1/completions"
            )
        reserved = sorted(_RENDERER_ARGUMENTS.intersection(variables or {}))
        if reserved:
            raise InvalidRequestError(
                f"chat_template_kwargs: got {reserved[0]!r}, which the service gives, expected other names"
            )
        try:
            rendered, _ = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=self._chat.template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self._chat.special_tokens, **(variables or {})},
            )
        except Exception as error:  # a template is a program of its own: what fails in it is these messages
            reason = str(error).split("\n", 1)[0]
            raise InvalidRequestError(
                f"messages: refused by the chat template of shard {self.shard!r}: {reason}"
            ) from error
        return str(rendered[0])
