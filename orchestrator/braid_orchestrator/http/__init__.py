"""The HTTP face of a braid: a FastAPI application over any `BraidPort`."""

from braid_orchestrator.http.app import create_app

__all__ = ["create_app"]
