"""What counts as a number of seconds, and as a whole number."""

import math

import attrs
import pytest

from trio_daq.sharing import checked_timeout, positive_int, positive_seconds


@attrs.frozen
class Settings:
    """What a settings class looks like."""

    period: float = attrs.field(default=1.0, validator=positive_seconds)
    count: int = attrs.field(default=1, validator=positive_int)


@pytest.mark.parametrize("value", [0, 0.0, 1, 1e-9, 3600.5])
def test_a_finite_number_of_seconds_comes_back_as_it_is(value):
    """Zero and above, whole or not, is a timeout."""
    assert checked_timeout(value) is value


@pytest.mark.parametrize("value", [-1, -1e-9, math.inf, -math.inf, math.nan])
def test_a_number_without_an_end_is_refused_by_name(value):
    """Negative, infinite and NaN raise a ValueError that names the parameter."""
    with pytest.raises(ValueError, match="patience must be a finite number"):
        checked_timeout(value, "patience")


@pytest.mark.parametrize("value", [True, False, "1", None, 1j, [1]])
def test_what_is_no_number_is_refused_by_name(value):
    """Booleans and everything else that is no number raise a TypeError that names the parameter."""
    with pytest.raises(TypeError, match="patience is a number of seconds"):
        checked_timeout(value, "patience")


def test_zero_can_be_excluded():
    """Where 0 means nothing it is refused, and the message says so."""
    with pytest.raises(ValueError, match="above 0"):
        checked_timeout(0, zero=False)


def test_settings_refuse_what_a_timeout_refuses():
    """As validators they name the field; None is no time."""
    with pytest.raises(TypeError, match="period is a number of seconds, not None"):
        Settings(period=None)
    for period in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="period"):
            Settings(period=period)
    for count in (0, -3):
        with pytest.raises(ValueError, match="count"):
            Settings(count=count)
    for count in (True, 1.0, "1"):
        with pytest.raises(TypeError, match="count"):
            Settings(count=count)
