"""Between a campaign and Ray Tune: hands its jobs to ``run_trials`` and gives the outcomes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lipadvisor.experiments.campaign import Campaign
from lipadvisor.experiments.progress import Progress
from lipadvisor.experiments.records import Job, record_of
from lipadvisor.experiments.settings import Settings
from lipadvisor.experiments.trial import trial_config

__all__ = ["CampaignSource"]


class CampaignSource:
    """A source of trials (``lipadvisor.tune.AskTell``) that is fed by a campaign."""

    def __init__(self, campaign: Campaign, settings: Settings, progress: Progress) -> None:
        self._campaign, self._settings, self._progress = campaign, settings, progress
        self._job_by_id: dict[str, Job] = {}

    @property
    def finished(self) -> bool:
        """Whether no job is left and none is running."""
        return self._campaign.finished

    def ask(self, trial_id: str) -> Mapping[str, Any] | None:
        """Return the next job's configuration; None while nothing can start before a running one ends."""
        job = self._campaign.ask()
        if job is None:
            return None
        self._job_by_id[trial_id] = job
        return {"trial_name": job.name, **trial_config(job, self._settings)}

    def tell(self, trial_id: str, result: Mapping[str, Any] | None, failed: bool, pruned: bool) -> None:
        """Take an outcome in; twice the same does nothing."""
        job = self._job_by_id.pop(trial_id, None)
        if job is None:
            return
        record = record_of(job, None if failed or pruned else result)
        self._campaign.tell(record)
        self._progress.add(record)
