"""Settings for the whole suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Derandomized: a change must not fail for an input that an earlier run did not happen to try. No deadline: the machine
# may be busy.
settings.register_profile(
    "lowbit", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lowbit")
