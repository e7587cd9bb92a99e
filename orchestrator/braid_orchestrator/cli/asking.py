"""Whom the command line asks: a running braid by HTTP or gRPC, or one assembled in this process."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import httpx

from braid_orchestrator.engine.requests import (
    ChoiceFinished,
    Event,
    Finished,
    GenerateRequest,
    RequestTimings,
    Started,
    TokenEvent,
    TopLogprob,
)
from braid_orchestrator.serving.probing import own_key_headers
from braid_rpc.errors import ERROR_TYPES, BraidError, UnavailableError
from braid_rpc.stability import ChoiceStability, TokenStability

if TYPE_CHECKING:
    from braid_orchestrator.config.values import BraidConfig


class Braid(ABC):
    """A braid that answers questions of the command line. Every method raises `BraidError`s only."""

    # Who answered, known once a stream has begun.
    model = ""
    braided = True

    @abstractmethod
    def stream(self, request: GenerateRequest, model: str | None) -> Iterator[Event]:
        """The request's events as they come."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What it is made of."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""


def find_braid(target: str) -> Braid:
    """The braid at ``http://…`` or, by gRPC, at ``host:port`` or ``unix:/path``."""
    if target.startswith(("http://", "https://")):
        return HttpBraid(target)
    from braid_orchestrator.cli.asking_grpc import GrpcBraid

    return GrpcBraid(target.removeprefix("grpc://"))


class HttpBraid(Braid):
    """By HTTP and server-sent events."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # Between two tokens there may be a long prompt of somebody else.
        self._http = httpx.Client(
            base_url=self._url,
            timeout=httpx.Timeout(600.0, connect=5.0),
            trust_env=False,
            headers=own_key_headers(),
        )

    def stream(self, request: GenerateRequest, model: str | None) -> Iterator[Event]:
        """See `Braid`."""
        with (
            self._translated(),
            self._http.stream("POST", "/generate", json=_body(request, model)) as response,
        ):
            _raise_for_status(response)
            for name, data in _events(response.iter_lines()):
                if name == "error":
                    raise _error(data["error"])
                if name == "started":
                    self.model, self.braided = data["model"], data["braided"]
                yield _event(name, data)

    def describe(self) -> dict[str, Any]:
        """See `Braid`."""
        with self._translated():
            response = self._http.get("/describe")
            _raise_for_status(response)
            answer: dict[str, Any] = response.json()
            return answer

    def close(self) -> None:
        """See `Braid`."""
        self._http.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"{self._url}: {error or type(error).__name__}; is a braid served there? "
                "(`serve run deploy/braid.yaml` or `braid serve`)"
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise BraidError(
                f"{self._url}: what answers there is no braid ({type(error).__name__})"
            ) from None


class LocalBraid(Braid):
    """In this process: the models are loaded here."""

    def __init__(self, config: BraidConfig) -> None:
        from braid_orchestrator.assembly import assemble_local

        self._service = assemble_local(config)

    def stream(self, request: GenerateRequest, model: str | None) -> Iterator[Event]:
        """See `Braid`."""
        import asyncio
        from dataclasses import replace

        from braid_orchestrator.serving.model_selection import answered_by, select_model

        description = self._service.describe()
        use_braiding, shard = select_model(
            model,
            request.use_braiding,
            request.shard,
            braid=description.name,
            shards=[one.name for one in description.shards],
        )
        request = replace(request, use_braiding=use_braiding, shard=shard)
        with asyncio.Runner() as runner:
            request = runner.run(self._service.decide(request))
            self.model = answered_by(request, braid=description.name, anchor=description.anchor)
            self.braided = request.use_braiding is True
            events = self._service.generate(request)
            while True:
                try:
                    yield runner.run(_next(events))
                except StopAsyncIteration:
                    return

    def describe(self) -> dict[str, Any]:
        """See `Braid`."""
        return asdict(self._service.describe())

    def close(self) -> None:
        """See `Braid`."""
        self._service.stop()


async def _next(events: Any) -> Event:
    event: Event = await anext(events)
    return event


def _body(request: GenerateRequest, model: str | None) -> dict[str, Any]:
    sampling = asdict(request.sampling)
    sampling["logit_bias"] = {str(token_id): bias for token_id, bias in request.sampling.logit_bias.items()}
    body = {
        "prompt": request.prompt,
        "n": request.n,
        "model": model,
        "use_braiding": request.use_braiding,
        "shard": request.shard,
        "timeout_s": request.timeout_s,
        "stability": None if request.stability is None else asdict(request.stability),
        "stream": True,
    }
    return body | sampling


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_error:
        response.read()
        raise _error(response.json()["error"])


def _error(body: dict[str, Any]) -> BraidError:
    kind = ERROR_TYPES.get(body["type"], BraidError)
    return kind(body["message"], retry_after_s=body.get("retry_after_s", 0.0))


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


def _event(name: str, data: dict[str, Any]) -> Event:
    if name == "started":
        return Started(data["request_id"], data["prompt_tokens"], data["weights_version"])
    if name == "token":
        alternatives = tuple(
            TopLogprob(one["id"], one["text"], one["logprob"]) for one in data.get("alternatives", ())
        )
        told = data.get("stability")
        return TokenEvent(
            data["index"],
            data["id"],
            data["text"],
            data.get("logprob"),
            alternatives,
            data["weights"],
            told and TokenStability(**told),
        )
    if name == "choice_finished":
        told = data.get("stability")
        return ChoiceFinished(
            data["index"],
            data["finish_reason"],
            data["stop_reason"],
            data["text"],
            told and ChoiceStability(**told),
        )
    usage = data["usage"]
    return Finished(usage["prompt_tokens"], usage["completion_tokens"], RequestTimings(**data["timings"]))
