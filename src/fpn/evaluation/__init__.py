"""COCO's numbers: of saved results (`scoring`), within a loop (`metrics`), and for the eye (`tables`)."""

from fpn.evaluation.curves import recall_curves
from fpn.evaluation.engines import Engine
from fpn.evaluation.metric import Metric, Truth
from fpn.evaluation.metrics import BoxAP, ProposalRecall
from fpn.evaluation.scoring import (
    BoxScores,
    evaluate_boxes,
    evaluate_categories,
    evaluate_proposals,
    score_boxes,
)
from fpn.evaluation.tables import box_table, category_table, proposal_table

__all__ = [
    "BoxAP",
    "BoxScores",
    "Engine",
    "Metric",
    "ProposalRecall",
    "Truth",
    "box_table",
    "category_table",
    "evaluate_boxes",
    "evaluate_categories",
    "evaluate_proposals",
    "proposal_table",
    "recall_curves",
    "score_boxes",
]
