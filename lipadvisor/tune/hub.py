"""The hub: one named actor that stores what all trials stream to it, and decides for them where that is asked for.

It does one thing at a time and remembers nothing that is not on disk: after a kill, Ray starts it anew, it reads how
far each trial's stream had come, and the clients send again what was not acknowledged. A decision is a pure function
of what the request carries (policy, observation, state), so that a kill loses none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lipadvisor.policies.contract import Decision, Observation, Policy
from lipadvisor.trajectory import Batch, TrajectoryStore

__all__ = ["Acknowledgement", "Hub", "Question", "packed", "start_hub"]


@dataclass(frozen=True, slots=True)
class Question:
    """What a policy at the hub needs to decide for a trial."""

    policy: Policy[Any]
    observation: Observation
    state: Any


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The hub's answer to a push: how far the stream is stored, and the decision if one was asked for."""

    sequence: int  # of the last batch stored
    answer: tuple[Decision, Any] | None = None  # decision and the policy's next state
    refused: str = ""  # why the batch can never be stored
    trouble: str = ""  # why it could not be stored now; send it again
    silent: str = ""  # why a question has no answer


class Hub:
    """What the actor runs; usable, and tested, without Ray too.

    Args:
        directory: The run's directory, on the hub's own disk.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._store = TrajectoryStore(directory)

    def begin(self, trial: str, start_step: int, config: Mapping[str, Any], token: str) -> int:
        """Open a new attempt of a trial and return its number; see ``TrajectoryStore.begin``."""
        return self._store.begin(trial, start_step=start_step, config=config, token=token)

    def push(
        self, trial: str, attempt: int, batches: Sequence[tuple[int, Batch]], question: bytes | None = None
    ) -> Acknowledgement:
        """Store batches, each once, and answer the question.

        Args:
            trial: Name of the trial.
            attempt: Number that ``begin`` gave.
            batches: Pairs of sequence number and rows, ascending.
            question: A :class:`Question` as :func:`packed`, if there is one. It is opened apart from the rows: a policy
                that this process cannot import costs its answer and no row.
        """
        sequence, refused, trouble, silent, answer = 0, "", "", "", None
        try:
            for number, batch in batches:
                sequence = self._store.append(trial, attempt, number, batch)
            if not batches:
                sequence = self._store.last_sequence(trial, attempt)
        except ValueError as error:
            refused = str(error)
        except OSError as error:
            trouble = str(error)
        if question is not None:
            try:
                asked: Question = cloudpickle.loads(question)
                answer = asked.policy.decide(asked.observation, asked.state)
            except Exception as error:  # the trial decides by itself then, and its log says why
                silent = f"{type(error).__name__}: {error}"
        return Acknowledgement(sequence, answer, refused, trouble, silent)

    def process_id(self) -> int:
        """Return the process that the hub runs in: it is alive."""
        return os.getpid()


def packed(question: Question) -> bytes:
    """Return ``question`` as ``Hub.push`` takes it."""
    content: bytes = cloudpickle.dumps(question)
    return content


def start_hub(directory: str | os.PathLike[str], name: str) -> Any:
    """Start the hub as an actor called ``name`` on this node, so that ``directory`` is this machine's.

    It takes no CPU, is restarted whenever it dies, and ends with this process.

    Returns:
        The actor's handle; trials find it by ``ray.get_actor(name)``.

    Raises:
        RayActorError: the hub could not start, e.g. because the directory cannot be written.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Hub).options(
        name=name,
        num_cpus=0,
        max_concurrency=1,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy=here,
    )
    hub = actor.remote(os.path.abspath(directory))
    ray.get(hub.process_id.remote(), timeout=120)
    return hub
