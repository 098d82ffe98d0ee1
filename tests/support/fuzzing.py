"""How long fuzzers run: a few seconds and always alike by default, as long as `scripts/fuzz` says otherwise.

`CRISHIM_FUZZ_EXAMPLES` is what `scripts/fuzz` sets: so many examples a property, other ones in each run.
"""

import os

from hypothesis import HealthCheck, settings

_EXAMPLES = int(os.environ.get("CRISHIM_FUZZ_EXAMPLES") or 0)


def fuzzed(examples: int) -> settings:
    """Return the settings of a property that is tried with so many examples in a normal run."""
    return settings(
        max_examples=_EXAMPLES or examples,
        derandomize=not _EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
