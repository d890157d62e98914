"""A script: trains and evaluates in two processes and writes down which images each of them saw.

Arguments: the data set's root, a folder for the results, the epochs.
"""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from fpn.data.datamodule import CocoDataModule
from fpn.data.options import ImageOptions
from fpn.types import Batch


class Recorder(LightningModule):
    """Learns one number and records every batch it is shown."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.folder = folder
        self.seen: dict[str, list[list[int]]] = {}

    def _record(self, stage: str, batch: Batch) -> None:
        self.seen.setdefault(f"{stage}{self.current_epoch}", []).append(batch.image_ids)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self._record("train", batch)
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self._record("val", batch)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self._record("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    root, folder, epochs = sys.argv[1:]
    torch.set_num_threads(1)
    recorder = Recorder(Path(folder))
    data = CocoDataModule(root, images=ImageOptions(32, 48), batch_size=2, eval_batch_size=2, num_workers=0)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        max_epochs=int(epochs),
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, datamodule=data)
    trainer.test(recorder, datamodule=data, verbose=False)
    (recorder.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(recorder.seen))


if __name__ == "__main__":
    main()
