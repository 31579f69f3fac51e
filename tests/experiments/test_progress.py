import io

from lipadvisor.experiments.progress import Progress, duration
from lipadvisor.experiments.records import REPLICATE, SEARCH, Job, Record


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _record(number: int, loss: float | None, stage: str = SEARCH) -> Record:
    return Record(Job("mlp", "cosine", stage, number, 0), "finished" if loss else "diverged", validation_loss=loss)


def test_plain_lines_say_done_best_and_time_left() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Progress(stream, 2, lambda: 10, lambda: now[0])
    assert progress.seconds_left() is None
    progress.add(_record(0, 0.5), count=False)
    now[0] = 40.0  # the processes had to start
    progress.add(_record(1, 0.25))
    progress.add(_record(2, None))
    now[0] = 44.0
    progress.add(_record(0, 0.125, REPLICATE))
    progress.close()
    first, second, third = stream.getvalue().splitlines()
    assert first.startswith("3/10 trials  |  best validation loss: mlp 0.2500 by cosine  |  ")
    assert second.startswith("4/10 trials")
    assert second.endswith("diverged")
    assert third.startswith("5/10 trials  |  0:10 left  |  ")  # two in four seconds, five to go
    assert "0.2500 by cosine" in third  # a repetition is no candidate


def test_a_terminal_gets_one_line() -> None:
    stream = _Terminal()
    progress = Progress(stream, 0, lambda: 3)
    for number in range(3):
        progress.add(_record(number, 0.5))
    progress.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 3


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 185)] == ["0:00", "1:00", "3:05"]
