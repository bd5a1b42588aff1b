"""Golden runs: twenty steps of every estimator, cell and task have the bits that were recorded.

On a machine with the recorded instruction set, compiled steps and version of torch the losses and the weights
are the same bit for bit. Elsewhere sums are made in another order: each step differs by rounding (2**-24
relative), and training enlarges the difference from step to step, more so where Adam divides a small gradient
by its own size. The tolerances are some ten times the largest differences that were seen between AVX2 and
plain
instructions, with and without the compiled steps: 1.3e-8 in the first loss, 2.2e-3 in all (a bridge over a
DNC; 5e-5 without it), 1.1e-2 in the norms.
"""

import pytest
from golden_cases import Case, cases, machine, run
from record import recorded

RECORD = recorded()
SAME_MACHINE = RECORD["machine"] == machine()
FIRST_STEP, ALL_STEPS, NORMS = 1e-6, 2e-2, 1e-1
"""Relative tolerances on another machine: of the first loss, of all losses, of the norms of the weights."""


def test_every_case_is_recorded():
    assert [case.name for case in cases()] == list(RECORD["runs"])


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_golden(case: Case):
    found, expected = run(case), RECORD["runs"][case.name]
    if SAME_MACHINE:
        assert found["losses"] == expected["losses"]
        assert found["weights"] == expected["weights"]
        return
    losses, before = ([float.fromhex(loss) for loss in each["losses"]] for each in (found, expected))
    assert losses[0] == pytest.approx(before[0], rel=FIRST_STEP)
    assert losses == pytest.approx(before, rel=ALL_STEPS)
    assert found["norms"] == pytest.approx(expected["norms"], rel=NORMS)
