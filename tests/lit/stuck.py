"""A script: `fpn`, but the seventh image that a worker reads never comes; its path is in stuck.txt."""

import multiprocessing
import sys
import time
from pathlib import Path

from torch import Tensor

from fpn.data.coco import CocoDataset
from fpn.lit.cli import main

original = CocoDataset.picture
pictures = 0


def picture(self: CocoDataset, index: int) -> Tensor:
    """That of the data set, up to the sixth."""
    global pictures
    pictures += 1
    if pictures == 7:
        Path("stuck.txt").write_text(str(self.image_folder / self.annotations.file_names[index]))
        time.sleep(1000)
    return original(self, index)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork", force=True)  # for workers to have what is changed here
    CocoDataset.picture = picture  # type: ignore[method-assign]
    main(sys.argv[1:])
