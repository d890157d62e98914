"""Scores that others have published, beside ours."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from fpn.console import say


class Published(Callback):
    """Prints published scores beside those of a test.

    Args:
        source: who published them, and what they were measured on.
        scores: in percent, by their names in scores.json, as AP or proposal_AR@1000.
    """

    def __init__(self, source: str, scores: dict[str, float]) -> None:
        self.source, self.published = source, scores

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """A line for each of them, below the tables of the test."""
        if stage != "test":
            return
        ours = pl_module.scores("test")
        for name, published in self.published.items():
            score = ours.get(f"test/{name}")
            # No error, which would cost the test's own tables and files.
            known = ", ".join(key.removeprefix("test/") for key in ours)
            found = f"{100 * score:.1f}" if score is not None else f"no such score among {known}"
            if trainer.is_global_zero:
                say(f"{name}: {found}; published {published:.1f} ({self.source})")
