"""What watches every training, added by the module itself."""

from fpn.lit.guards.cut_short import ToldIfCutShort
from fpn.lit.guards.finite import FiniteSteps, NonFiniteError
from fpn.lit.guards.unreadable import ToldIfUnreadable

__all__ = ["FiniteSteps", "NonFiniteError", "ToldIfCutShort", "ToldIfUnreadable"]
