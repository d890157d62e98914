"""COCO's numbers: of saved results (`scoring`), within a loop (`metrics`), for the eye (`tables`).

Besides, what lies behind them (`diagnosis`).
"""

from fpn.evaluation.curves import recall_curves as recall_curves
from fpn.evaluation.diagnosis import Pyramid as Pyramid
from fpn.evaluation.diagnosis import diagnose as diagnose
from fpn.evaluation.diagnosis import diagnose_proposals as diagnose_proposals
from fpn.evaluation.engines import Engine as Engine
from fpn.evaluation.metric import Metric as Metric
from fpn.evaluation.metric import Truth as Truth
from fpn.evaluation.metrics import BoxAP as BoxAP
from fpn.evaluation.metrics import ProposalRecall as ProposalRecall
from fpn.evaluation.scoring import BoxScores as BoxScores
from fpn.evaluation.scoring import evaluate_proposals as evaluate_proposals
from fpn.evaluation.scoring import score_boxes as score_boxes
from fpn.evaluation.tables import box_table as box_table
from fpn.evaluation.tables import category_table as category_table
from fpn.evaluation.tables import proposal_table as proposal_table
