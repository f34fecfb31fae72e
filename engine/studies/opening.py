"""How a comparison, a sweep and a study begin: everything checked, the folder open, the calibration batch kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ..asked.recipe import Recipe
from ..asked.settings import PlaceOptions, Settings
from ..delivery.rehearsal import rehearse
from ..inputs.calibration import keep
from ..progress import Progress
from ..run.job import Finetune, Job, prepare
from ..store import run_folder as files
from ..workers.base import Placement
from ..workers.pool import check


@dataclass(frozen=True)
class Opening:
    """Where something works and writes, and what becomes of what is there already.

    Attributes:
        folder: for everything that is written.
        placement: the workers.
        resume: whether to go on with what is in the folder.
        force: whether to replace it.
        progress: is told how far it is.
    """

    folder: Path
    placement: Placement
    resume: bool
    force: bool
    progress: Progress

    def job(
        self, model: nn.Module | str, weights: str | Path | None, data: Any, asked: Settings, finetune: Recipe | Finetune | None
    ) -> Job:
        """Everything that was asked, checked and brought together; nothing is written.

        Raises:
            FreePruneError: the workers cannot be had, the folder cannot be used, or something asked cannot be done.
        """
        check(self.placement)
        files.check_folder(self.folder, self.resume, self.force)
        return prepare(model, weights, data, asked, finetune, folder=self.folder if self.resume else None)

    def begin(self, job: Job, config: Mapping[str, Any], tested: Dataset[object] | None, *, finished: bool) -> None:
        """Rehearse what will follow, and open the folder.

        Args:
            config: what `config.json` says.
            tested: the images that networks will be measured on; None where none will be.
            finished: whether nothing will follow, so that there is nothing to rehearse.

        Raises:
            FreePruneError: a step does not work, or the folder holds something that was asked otherwise.
        """
        if not finished:
            rehearse(job, tested, exports=False, progress=self.progress)
        files.open_folder(self.folder, dict(config), self.resume, self.force)
        keep(job.batch, job.data, self.folder)

    def has_finished(self, name: str) -> bool:
        """Whether the folder to resume holds the file that is written at the end."""
        return self.resume and (self.folder / name).exists()


def placed(workers: int | None, options: PlaceOptions) -> Placement:
    """Where work is done, as `prune` is told it; what says so is taken out of the options."""
    return Placement(workers, options.pop("ray", None), options.pop("ray_gpus", 0.0))
