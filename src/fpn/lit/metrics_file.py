"""A run's metrics.csv, in which nothing is lost that has been logged."""

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from fpn.errors import InputError
from fpn.files import replacing


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, which writes a row when it comes, and never empties the file to add a column.

    Args:
        save_dir: folder of all runs.
        name: folder of this kind of runs in it.
        version: of the run, its folder there; null for the next version_N.
        prefix: of the names of what is logged.

    Raises:
        InputError: the version is that of another run.
    """

    def __init__(
        self, save_dir: str, name: str = "fpn", version: int | str | None = None, prefix: str = ""
    ) -> None:
        super().__init__(save_dir, name, version, prefix, flush_logs_every_n_steps=1)
        if version is not None:  # known to all processes, and to each before it waits for the others
            _refuse_taken(self.log_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir)
        return self._experiment


class _Rows(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        # Lightning's own deletes metrics.csv.
        _refuse_taken(self.log_dir)

    def save(self) -> None:
        """Append the rows that are new; with a new column, write the file anew.

        Raises:
            OSError: naming the file, which keeps what was in it.
        """
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        new_columns = self._record_new_keys()
        rows: list[dict[str, Any]] = self.metrics
        self.metrics = []
        if new_columns:
            if path.exists():
                with path.open(newline="") as old:
                    rows = [*csv.DictReader(old), *rows]
            with replacing(path) as part, part.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.metrics_keys)
                writer.writeheader()
                writer.writerows(rows)
            return
        try:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(rows)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _refuse_taken(folder: str) -> None:
    for name in ("config.yaml", "metrics.csv"):
        if Path(folder, name).exists():
            raise InputError(
                f"{folder} has the {name} of another run: leave out the logger's version, or choose another"
            )
