"""The time left, by a fake clock."""

import pytest

from m3mlx.cli.pace import Pace
from m3mlx.cli.render import Progress, _clock


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


TOTAL = 1000
RUNS = {
    "steady": lambda done: (16, 1.6),
    "slow to begin": lambda done: (16, 20.0 if done < 32 else 1.6),
    "growing batches": lambda done: (4, 0.5) if done < 60 else (32, 3.2),
    "files of many sizes": lambda done: (16, 0.4 if done // 16 % 3 else 4.0),
    "busy at first": lambda done: (16, 3.0 if done < 130 else 1.5),
    "slower all the time": lambda done: (16, 1.6 * (1 + done / 3000)),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("judged", [lambda done: TOTAL, lambda done: TOTAL + done % 48 - 24])
def test_what_is_left_is_right_within_a_half_from_a_quarter_on(run, judged):
    clock = Clock()
    pace, done, said = Pace(clock), 0, []
    assert pace.left() is None
    while done < TOTAL:
        count, took = run(done)
        clock.now += took
        done = min(done + count, TOTAL)
        pace.note(done, max(judged(done), done))
        said.append((clock.now, pace.left(), done / TOTAL))
    for at, left, share in said:
        if 0.25 <= share <= 0.9:  # afterwards a batch is all
            assert 1 / 1.5 < left / (clock.now - at) < 1.5, (share, left, clock.now - at)


def test_time_passes_between_two_steps_and_never_below_nothing():
    clock = Clock()
    pace = Pace(clock)
    clock.now += 10
    pace.note(10, 40)
    assert pace.left() == 30
    clock.now += 8
    assert pace.left() == 22
    clock.now += 100
    assert pace.left() == 0
    pace.note(10, 40)  # told again, with nothing new
    assert pace.left() == 0


def test_the_time_left_survives_a_total_that_changes(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress()
    for done in range(1, 5):
        progress("memorizing: a", done, 100 + done)
    assert progress._pace.left() is not None
    progress.close()


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (61.2, "01:02"), (7325, "2:02:05")])
def test_a_clock_for_people(seconds, text):
    assert _clock(seconds) == text
