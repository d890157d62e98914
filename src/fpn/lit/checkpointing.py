"""Checkpoints that are whole or not there."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fpn.checkpoints import save_whole
from fpn.errors import InputError


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one it replaces, whose name it takes once it is whole and on the disk.

    Lightning's own takes the way through the system's folder for temporary files. From another file system
    it is copied over the old checkpoint, of which a process killed meanwhile, or a full disk, leaves nothing.

    Which files a ModelCheckpoint is to replace it learns from the checkpoint that a run goes on with. That
    may be somebody else's: only what lies in its own folder is removed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folders: set[str] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """As Lightning's.

        Raises:
            OSError: the file, which it names, cannot be written; what was there before still is.
        """
        self._folders.add(str(path).rpartition("/")[0])
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        save_whole(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *arguments: Any, **named: Any) -> dict[str, Any]:
        """As Lightning's.

        Raises:
            InputError: it is one that nobody has asked for.
        """
        if Path(path).name.startswith("hpc_ckpt_"):
            raise InputError(
                f"{path}: Lightning goes on with a file of this name in any SLURM job started in its folder; "
                "move it away, or to go on with it, give it another name and that as --ckpt_path"
            )
        return super().load_checkpoint(path, *arguments, **named)

    def remove_checkpoint(self, path: str | Path) -> None:
        """As Lightning's, which has compared the absolute path with the folder unless it has a protocol."""
        name = str(path)
        if ".." in Path(name).parts or "::" in name:
            return
        if "://" not in name:
            super().remove_checkpoint(Path(name).absolute())
        elif name.rpartition("/")[0] in self._folders:
            super().remove_checkpoint(path)
