"""The cluster: trials through Ray Tune, their trajectories through one hub actor. The only package that imports Ray.

::

    run_trials --> Tuner --> a trial's process: trainable(TrialContext) -> HubClient -> Hub (actor) -> TrajectoryStore
               --> Ledger (callback): results/<trial>.json, progress
"""

from lipadvisor.tune.client import HubClient, HubUnavailableError
from lipadvisor.tune.hub import Hub, start_hub
from lipadvisor.tune.ledger import Progress, finished
from lipadvisor.tune.placement import HubPolicy
from lipadvisor.tune.run import Outcome, run_trials
from lipadvisor.tune.searcher import AskTell, AskTellSearcher
from lipadvisor.tune.session import ray_session
from lipadvisor.tune.trial import JSON_STATE, StateFormat, TrialContext

__all__ = [
    "JSON_STATE",
    "AskTell",
    "AskTellSearcher",
    "Hub",
    "HubClient",
    "HubPolicy",
    "HubUnavailableError",
    "Outcome",
    "Progress",
    "StateFormat",
    "TrialContext",
    "finished",
    "ray_session",
    "run_trials",
    "start_hub",
]
