"""The best checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from fpn.errors import InputError
from fpn.files import replacing
from fpn.weights import read_checkpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by validation AP, or AR@1000 of a proposal network, as best.ckpt.

    A run that goes on in a folder of its own takes the best checkpoint so far along.
    """

    def __init__(self) -> None:
        super().__init__(filename="best", mode="max", enable_version_counter=False)
        self._before: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Take the score to watch from the module."""
        self.monitor = pl_module.monitor
        super().setup(trainer, pl_module, stage)

    def told(self) -> str:
        """The score of the best, as "AP 33.9", COCO's in percent; empty while there is none."""
        if self.best_model_score is None or not self.monitor:
            return ""
        name = self.monitor.removeprefix("val/").removeprefix("proposal_")
        score = float(self.best_model_score)
        return f"{name} {100 * score:.1f}" if name in ("AP", "AR@1000") else f"{name} {score:.4g}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what the checkpoint tells of the best one; Lightning forgets it in another folder."""
        self._before = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the best checkpoint so far along."""
        super().on_train_start(trainer, pl_module)
        score = self._before.get("best_model_score")
        if score is None:
            return
        path = self.format_checkpoint_name({})
        # Only the first process need see the other folder.
        taken = trainer.is_global_zero and self._take_along(float(score), Path(path), trainer.ckpt_path)
        if trainer.strategy.broadcast(taken):
            self.best_model_path = self.kth_best_model_path = path
            self.best_model_score = self.current_score = self.kth_value = score
            self.best_k_models = {path: score}
        else:
            rank_zero_info(
                f"{self._before['best_model_path']} is not what it was when {trainer.ckpt_path} was written: "
                "the best checkpoint is chosen anew from here"
            )

    def _take_along(self, score: float, path: Path, ckpt_path: str | Path | None) -> bool:
        """Copy the best checkpoint here, unless a better one, from after the stop, has taken its place."""
        places = [Path(self._before["best_model_path"]), Path(str(ckpt_path)).with_name(path.name)]
        for place in places:
            try:
                kept = read_checkpoint(place)["callbacks"][self.state_key]["best_model_score"]
            except (InputError, KeyError):
                continue
            if float(kept) == score:
                if place.resolve() != path.resolve():
                    with replacing(path) as part:
                        shutil.copyfile(place, part)
                return True
        return False
