"""An attack counts what passed, names what failed, and repeats any case."""

import numpy as np
import pytest

from . import campaign


def case(rng, folder):
    number = int(rng.integers(100))
    assert not list(folder.iterdir())
    (folder / "left").touch()
    assert number % 3, f"drew {number}"
    return "odd" if number % 2 else "even"


def test_every_case_is_counted_once_and_failures_carry_their_command():
    result = campaign.run("operators", case, seed=5, seconds=60, most_failures=4)
    assert len(result.failures) == 4
    assert result.cases == max(result.failures) + 1  # it stopped at the fourth failure
    assert set(result.kinds) <= {"odd", "even"}
    for number in result.failures:
        assert f"operators --seed 5 --case {number}" in str(result)


def test_a_case_repeats_alone():
    result = campaign.run("operators", case, seed=5, seconds=60, most_failures=1)
    (number,) = result.failures
    with pytest.raises(AssertionError, match=result.failures[number].splitlines()[0]):
        campaign.run_case(case, 5, number)


def test_any_exception_is_a_failure_and_time_ends_the_run():
    def crash(rng: np.random.Generator, folder):
        raise ValueError("broken")

    assert "ValueError: broken" in campaign.run("files", crash, 0, seconds=0).failures[0]
    assert campaign.run("files", lambda rng, folder: "fine", 0, seconds=0.05).cases > 1
