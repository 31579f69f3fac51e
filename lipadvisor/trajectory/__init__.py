"""What a run did, step by step: four tables, kept in memory, stored crash-safe, read back as pandas frames.

    advisor -> Recorder -> sink -> TrajectoryStore -> load_run -> frames -> observations_from_frame -> any policy

No torch and no Ray here: a recorded run is read with numpy, pandas and pyarrow alone.
"""

from lipadvisor.trajectory.recorder import Recorder, Trajectory
from lipadvisor.trajectory.replay import observations_from_frame
from lipadvisor.trajectory.run import Run, load_run
from lipadvisor.trajectory.schema import SCHEMA_VERSION, TABLES, Batch, Sink
from lipadvisor.trajectory.store import TrajectoryStore
from lipadvisor.trajectory.whole_files import read_json, write_json, write_text

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "Batch",
    "Recorder",
    "Run",
    "Sink",
    "Trajectory",
    "TrajectoryStore",
    "load_run",
    "observations_from_frame",
    "read_json",
    "write_json",
    "write_text",
]
