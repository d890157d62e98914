"""A run's metrics.csv, in which nothing is lost that has been logged."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from fpn.errors import InputError
from fpn.files import replacing


class MetricsFile(CSVLogger):
    """As Lightning's CSVLogger, but a row is written when it comes, and no file is emptied to add a column.

    Args:
        save_dir: folder of all runs.
        name: folder of this kind of runs in it.
        version: of the run, its folder there; null for the next version_N.

    Raises:
        InputError: the version is that of another run.
    """

    def __init__(self, save_dir: str, name: str = "fpn", version: int | str | None = None) -> None:
        super().__init__(save_dir, name, version)
        self._path: Path | None = None
        self._columns: list[str] = []
        self._named = version is not None
        if version is not None:  # known to all processes, and to each before it waits for the others
            self._refuse_taken()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The path of the file, whose folder is made when a run first asks for it."""
        if self._path is None:
            if self._named:
                self._refuse_taken()
            try:
                Path(self.log_dir).mkdir(parents=True, exist_ok=self._named)
            except FileExistsError:  # by a run that was started at the same time
                self._version = None
                return self.experiment
            self._path = Path(self.log_dir, "metrics.csv")
        return self._path

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row; with a new column, write the file anew.

        Raises:
            OSError: naming the file, which keeps what was in it.
        """
        path: Path = self.experiment
        row = {**convert_tensors_to_scalars(metrics), "step": step}
        if row.keys() <= set(self._columns):
            try:
                with path.open("a", newline="") as file:
                    csv.DictWriter(file, self._columns).writerow(row)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
            return
        rows = [row]
        if self._columns:
            with path.open(newline="") as old:
                rows = [*csv.DictReader(old), row]
        self._columns = sorted({*self._columns, *row})
        with replacing(path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: config.yaml has them."""

    def save(self) -> None:
        """Nothing: it is done."""

    def _refuse_taken(self) -> None:
        for name in ("config.yaml", "metrics.csv"):
            if Path(self.log_dir, name).exists():
                remedy = "leave out the logger's version, or choose another"
                raise InputError(f"{self.log_dir} has the {name} of another run: {remedy}")
