from __future__ import annotations

import subprocess
import sys

import braid_rpc

HEAVY = ("torch", "ray", "transformers", "fastapi", "pydantic")


def loaded_after(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_clients_need_neither_torch_nor_ray() -> None:
    loaded = loaded_after(
        "from braid_rpc import *\nimport braid_rpc.stream_client, braid_rpc.tensor, braid_rpc.channels"
    )
    assert "grpc" in loaded
    assert not loaded.intersection(HEAVY)


def test_the_package_alone_loads_no_transport() -> None:
    assert "grpc" not in loaded_after("import braid_rpc")


def test_everything_promised_is_there() -> None:
    for name in braid_rpc.__all__:
        assert getattr(braid_rpc, name).__name__ == name
