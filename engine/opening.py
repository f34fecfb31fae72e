"""The start of a run or a study: check the arguments, open the folder, save the calibration batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..options import as_path
from .asked.commands import FOLDER
from .asked.declaration import Hardware
from .asked.recipe import Recipe
from .asked.settings import Settings
from .delivery.rehearsal import rehearse
from .inputs.calibration import keep
from .inputs.dense import GivenModel
from .inputs.devices import device_of
from .progress import Progress, Shown, reported
from .run.job import Job, prepare
from .run.task import Finetune
from .store import run_folder as files
from .store.continuation import FIRST, earlier_of
from .training.processes import check_hardware
from .workers.base import Placement
from .workers.pool import check


@dataclass(frozen=True)
class Opening:
    """The output folder and the workers, and what to do with a run that is already in the folder.

    Attributes:
        folder: for everything that is written.
        placement: the workers.
        hardware: what networks run on.
        resume: whether to continue the run in the folder.
        force: whether to replace it.
        progress: is called with the progress.
    """

    folder: Path
    placement: Placement
    hardware: Hardware
    resume: bool
    force: bool
    progress: Progress

    def job(
        self, model: GivenModel, data: Any, asked: Settings, finetune: Recipe | Finetune | None, *,
        timed: bool = False, extends: bool = False,
    ) -> Job:  # fmt: skip
        """The job, with all arguments checked; nothing is written.

        Args:
            timed: whether a target on latency is allowed.
            extends: whether a run that is resumed may be asked for more trials than before.

        Raises:
            FreePruneError: the workers are not available, the folder cannot be used, or an argument is wrong.
        """
        files.check_folder(self.folder, self.resume, self.force)
        check(self.placement, device_of(self.hardware.device))
        return prepare(
            model, data, asked, finetune, folder=self.folder if self.resume else None, timed=timed,
            earlier=earlier_of(self.folder, asked.trials, asked.time_limit) if extends and self.resume else FIRST,
            hardware=self.hardware,
        )  # fmt: skip

    def begin(self, job: Job, config: Mapping[str, Any], tested: Dataset[object] | None, *, finished: bool) -> None:
        """Rehearse the later steps, and open the folder.

        Args:
            config: the content of `config.json`.
            tested: the images that networks will be measured on; None if none will be.
            finished: whether no later steps are left to rehearse.

        Raises:
            FreePruneError: a step does not work, or the run in the folder has other options.
        """
        if not finished:
            rehearse(job, tested, exports=False, progress=self.progress)
        files.open_folder(self.folder, dict(config), self.resume, self.force)
        keep(job.batch, job.data, self.folder)

    def has_finished(self, name: str) -> bool:
        """Whether the folder to resume holds the file of this name, which is written at the end."""
        return self.resume and (self.folder / name).exists()


@contextmanager
def opened(
    out: str | Path, placement: Placement, hardware: Hardware, resume: bool, force: bool, progress: Shown, *,
    helped: bool = False,
) -> Iterator[Opening]:  # fmt: skip
    """Within it a run or a study goes on: its progress is shown, and what its errors leave is in its folder.

    Args:
        helped: whether other processes, of torchrun, may take part.

    Raises:
        FreePruneError: the hardware is not there, or an argument is wrong.
    """
    check_hardware(hardware, helped=helped)
    for name, given in (("resume", resume), ("force", force)):
        FOLDER[name].check(given)
    folder = as_path(out, "out")
    with files.errors_kept(folder, resume), reported(progress) as tell:
        yield Opening(folder, placement, hardware, resume, force, tell)
