"""Three processes that fill metrics with their shares of the images: `ranks.py FOLDER`.

Each reads FOLDER/case.pt, meets the others through FOLDER/meeting, and writes FOLDER/RANK.json. Where there
are two shares, they are those of the first two processes.
"""

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fpn.evaluation import BoxAP, ProposalRecall, Truth
from fpn.types import Batch, Categories, Detections, Inference


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=3)
    groups = {2: dist.new_group([0, 1]), 3: dist.group.WORLD}
    case = torch.load(folder / "case.pt", weights_only=True)
    # Only process 0 has the file: the others fail if they try to read it.
    annotations = folder / ("truth.json" if rank == 0 else "absent.json")
    categories = Categories(tuple(case["category_ids"]), tuple(map(str, case["category_ids"])))
    metrics = {
        processes: {
            "boxes": BoxAP(process_group=group),
            "proposals": ProposalRecall(process_group=group),
        }
        for processes, group in groups.items()
    }
    said: dict[str, Any] = {}
    for share, image_ids in case["shares"].items():
        if rank >= len(image_ids):
            continue
        for name, metric in metrics[len(image_ids)].items():
            metric.reset()
            metric.score_on(Truth(annotations, categories))
            for image_id in image_ids[rank]:
                boxes, scores, labels = case["found"][image_id]
                kept = 0 if share == "nothing found" else None
                found = [Detections(boxes[:kept], scores[:kept], labels[:kept])]
                metric.update(Batch(torch.empty(1, 3, 1, 1), [], [], [image_id]), Inference(found, found))
            try:
                said[f"{share}, {name}"] = {"scores": metric.compute(), "results": list(metric.results())}
                if rank == 0 and isinstance(metric, ProposalRecall):
                    said[f"{share}, {name}"]["curves"] = metric.curves()
            except Exception as error:
                said[f"{share}, {name}"] = {"error": type(error).__name__, "message": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    # Forked, what takes seconds to import is imported once.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=main, args=(rank, Path(sys.argv[1]))) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
