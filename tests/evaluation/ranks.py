"""One of two processes that fill metrics with their share of the images: `ranks.py RANK FOLDER`.

Reads FOLDER/case.pt, meets the other process through FOLDER/meeting, writes FOLDER/RANK.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fpn.evaluation import BoxAP, ProposalRecall
from fpn.types import Categories, Detections


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    case = torch.load(folder / "case.pt", weights_only=True)
    # Only process 0 has the file: the other fails if it tries to read it.
    annotations = folder / ("truth.json" if rank == 0 else "absent.json")
    categories = Categories(tuple(case["category_ids"]), tuple(map(str, case["category_ids"])))
    metrics = {"boxes": BoxAP(annotations, categories), "proposals": ProposalRecall(annotations)}
    said: dict[str, Any] = {}
    for share, image_ids in case["shares"].items():
        for name, metric in metrics.items():
            metric.reset()
            for image_id in image_ids[rank]:
                boxes, scores, labels = case["found"][image_id]
                kept = 0 if share == "nothing found" else None
                metric.update([image_id], [Detections(boxes[:kept], scores[:kept], labels[:kept])])
            try:
                said[f"{share}, {name}"] = {"scores": metric.compute(), "results": metric.results()}
                if rank == 0 and isinstance(metric, ProposalRecall):
                    said[f"{share}, {name}"]["curves"] = metric.curves()
            except Exception as error:
                said[f"{share}, {name}"] = {"error": type(error).__name__, "message": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
