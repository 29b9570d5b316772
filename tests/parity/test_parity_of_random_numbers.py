"""Random numbers by example: N replicas make the steps of one."""

from parity.suite import (  # noqa: F401
    pytest_generate_tests,
    test_several_replicas_make_the_steps_of_one,
    test_two_workers_make_the_steps_of_one_replica,
    two_workers,
)

THEME = "random numbers"
