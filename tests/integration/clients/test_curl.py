"""curl, and a gRPC client that knows nothing but what reflection tells it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from served import Served


def curl(*arguments: str) -> tuple[int, str]:
    if shutil.which("curl") is None:
        pytest.skip("needs curl, which is not installed")
    command = ["curl", "-sS", "--noproxy", "*", "-w", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_a_stream_ends_with_done(braid: Served) -> None:
    body = json.dumps({"prompt": "the", "max_tokens": 3, "stream": True})
    status, text = curl("-N", f"{braid.openai_url}/completions", "--json", body)
    assert status == 200
    assert text.rstrip().endswith("data: [DONE]")


def test_a_body_that_is_no_utf8_is_told_where(braid: Served, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b'{"prompt": "caf\xe9"}')
    for path in ("/v1/completions", "/v1/chat/completions", "/generate", "/tokenize"):
        status, text = curl(f"{braid.url}{path}", "--json", f"@{tmp_path / 'body'}")
        assert status == 400
        assert json.loads(text)["error"]["message"] == (
            "body: got bytes that are not UTF-8 at 15, expected JSON in UTF-8"
        )


def test_a_program_that_knows_only_reflection_lists_and_calls(braid: Served) -> None:
    with grpc.insecure_channel(braid.grpc_target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "braid.v1.Braid" in database.get_services()
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("braid.v1.Braid")
        assert {method.name for method in service.methods} >= {"Generate", "Score", "Describe", "Cancel"}

        def call(name: str, request: dict) -> list[dict]:
            method = service.FindMethodByName(name)
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            stub = kind(
                f"/braid.v1.Braid/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            reply = stub(ParseDict(request, GetMessageClass(method.input_type)()), timeout=60)
            return [MessageToDict(message) for message in (reply if method.server_streaming else [reply])]

        [card] = call("Describe", {})
        assert [shard["name"] for shard in card["shards"]] == ["left", "right"]
        events = call("Generate", {"text": "the", "sampling": {"maxTokens": 4, "ignoreEos": True}})
        assert [next(iter(event)) for event in events] == [
            "started",
            *["token"] * 4,
            "choiceFinished",
            "finished",
        ]
