"""Whatever providers tell of what they used, in whatever order: the rules of charging hold.

`python -m bench reports` tries 200,000 reports; here is a share of them.
"""

import random

from support.reported import try_once

REPORTS = 8_000


def test_whatever_is_told_and_wherever_it_ends_the_charge_is_between_told_and_held() -> None:
    told, number = 0, 0
    while told < REPORTS:
        number += 1
        told += try_once(random.Random(number))
