"""Checkpoint files: written whole or not at all, read without running code. Knows not what is in them.

A folder holds ``step-00000040.ckpt`` files, the last few, and ``best.safetensors`` with the trained parameters of the
best evaluation where the run looks for it. A checkpoint is a line with the format and a SHA-256, for `torch.load`
doesn't notice a flipped bit, and after it what `torch.save` wrote.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor

from braid_fusion.errors import CheckpointMismatchError, CorruptCheckpointError, NoCheckpointError
from braid_fusion.whole_file import write_whole

_FORMAT = 2  # 1: what is random in a batch followed from what was drawn before it
_HEADING = "braid checkpoint"
BEST_FILE = "best.safetensors"
_STEP_FILE = re.compile(r"step-(\d{8,})\.ckpt")


class CheckpointFolder:
    """A run's checkpoints.

    Args:
        keep: how many of the last are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, step: int, content: Mapping[str, Any]) -> Path:
        """Write a step's checkpoint, then drop the oldest. After an error all that was there is still there.

        Args:
            content: tensors and plain values, nested in mappings and lists.

        Raises: OSError, from a full disk for example.
        """
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        data = buffer.getbuffer()
        path = self.folder / f"step-{step:08d}.ckpt"
        write_whole(path, f"{_HEADING} {_FORMAT} {hashlib.sha256(data).hexdigest()}\n".encode(), data)
        for _, old in steps_in(self.folder)[: -self._keep]:
            old.unlink()
        return path

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one of this folder's."""
        return checkpoint.parent.resolve() == self.folder.resolve()

    def rewind(self, step: int, best: Mapping[str, Tensor] | None) -> None:
        """Remove what a run that is taken up again at ``step`` wrote later: it is done anew. Raises: OSError.

        Args:
            best: the parameters of the best evaluation so far; None: of none.
        """
        for later, path in steps_in(self.folder):
            if later > step:
                path.unlink()
        if best is None:
            (self.folder / BEST_FILE).unlink(missing_ok=True)
        else:
            self.save_best(best)

    def save_best(self, parameters: Mapping[str, Tensor]) -> Path:
        """Write the parameters of the best evaluation in place of the former best."""
        path = self.folder / BEST_FILE
        write_whole(path, dump_tensors({name: tensor.contiguous() for name, tensor in parameters.items()}))
        return path

    def refuse_another_run(self) -> None:
        """Raises: CheckpointMismatchError if there are checkpoints, with which a run that doesn't go on from one of
        them would mix its own."""
        found = steps_in(self.folder)
        if found:
            raise CheckpointMismatchError(
                f"{self.folder}: got checkpoints up to {found[-1][1].name}, expected none for a run that doesn't go "
                "on from one of them; resume from them or choose another folder"
            )


def last_checkpoint(path: Path) -> Path:
    """A checkpoint's file; of a folder, its last one's. Raises: NoCheckpointError if there is none."""
    if path.is_dir():
        found = steps_in(path)
        if found:
            return found[-1][1]
        got = "a folder without checkpoints"
    elif path.exists():
        return path
    else:
        got = "nothing there"
    raise NoCheckpointError(f"{path}: no run here to go on with: got {got}, expected step-….ckpt of one")


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of a folder's checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    matches = ((_STEP_FILE.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Of a folder, its last one's.

    Raises: NoCheckpointError if there is none; CorruptCheckpointError, naming the one before it, if it isn't what was
        written; CheckpointMismatchError for one of another version of Braid.
    """
    path = last_checkpoint(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptCheckpointError(f"{path}: cannot be read: {error}") from error
    heading, _, body = data.partition(b"\n")
    sha256 = hashlib.sha256(body).hexdigest()
    expected = f"{_HEADING} {_FORMAT} {sha256}".encode()
    other = re.fullmatch(rb"%b (\d+) %b" % (_HEADING.encode(), sha256.encode()), heading)
    if other and heading != expected:
        raise CheckpointMismatchError(
            f"{path}: got a checkpoint of format {int(other[1])}, expected {_FORMAT}: another version of Braid wrote "
            "it, with which the run can go on; here it has to begin anew, in another folder"
        )
    if heading != expected:
        raise CorruptCheckpointError(
            f"{path}: damaged, or no checkpoint: got content that is not what its first line says, expected a line "
            f"with the content's SHA-256; {_way_on(path)}"
        )
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise CorruptCheckpointError(
            f"{path}: damaged: got what torch can't load: {error}; {_way_on(path)}"
        ) from error
    return content


def _way_on(path: Path) -> str:
    """How a run whose last checkpoint can't be read goes on."""
    found = [other for _, other in steps_in(path.parent)]
    if path not in found:
        return f"expected step-….ckpt of a run{f', such as {found[-1].name} beside it' if found else ''}"
    before = found[: found.index(path)]
    if not before:
        return "there is none before it in its folder, so the run has to begin anew, in another folder"
    return f"remove it, and the run can be resumed from {before[-1].name}, the one before it"
