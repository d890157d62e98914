"""COCO's numbers: of saved results (`scoring`), within a loop (`metrics`), for the eye (`tables`).

Besides, what lies behind them (`diagnosis`).
"""

from fpn.evaluation.curves import recall_curves
from fpn.evaluation.diagnosis import Pyramid, diagnose, diagnose_proposals
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
    "Pyramid",
    "Truth",
    "box_table",
    "category_table",
    "diagnose",
    "diagnose_proposals",
    "evaluate_boxes",
    "evaluate_categories",
    "evaluate_proposals",
    "proposal_table",
    "recall_curves",
    "score_boxes",
]
