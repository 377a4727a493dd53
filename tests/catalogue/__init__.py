"""Every public optimizer, transformation and schedule, once: what is listed here goes through all laws and parity."""

from tests.catalogue.accumulation import ACCUMULATION, ACCUMULATION_ELSEWHERE
from tests.catalogue.averaging import AVERAGING, AVERAGING_ELSEWHERE
from tests.catalogue.entry import (
    Entry as Entry,
    ScheduleCase as ScheduleCase,
    ScheduleEntry as ScheduleEntry,
    case_id as case_id,
    decaying as decaying,
    storage_tolerance as storage_tolerance,
)
from tests.catalogue.hyperparams import HYPERPARAMS, HYPERPARAMS_ELSEWHERE
from tests.catalogue.later_optimizers import LATER_OPTIMIZERS, LATER_OPTIMIZERS_ELSEWHERE, THEIR_TRANSFORMATIONS
from tests.catalogue.masking import MASKING, MASKING_ELSEWHERE
from tests.catalogue.moments import MOMENTS
from tests.catalogue.monitors import MONITORS, MONITORS_ELSEWHERE
from tests.catalogue.optimizers import OPTIMIZERS as OPTIMIZERS
from tests.catalogue.schedules import SCHEDULES, WSD as WSD
from tests.catalogue.transformations import TRANSFORMATIONS as TRANSFORMATIONS

ENTRIES = (
    *OPTIMIZERS,
    *MOMENTS,
    *LATER_OPTIMIZERS,
    *TRANSFORMATIONS,
    *THEIR_TRANSFORMATIONS,
    *MASKING,
    *HYPERPARAMS,
    *ACCUMULATION,
    *AVERAGING,
    *MONITORS,
)
CASES = [(entry, case) for entry in ENTRIES for case in entry.cases]
SCHEDULE_CASES = [(entry, case) for entry in SCHEDULES for case in entry.cases]

ELSEWHERE = {
    "apply_updates": "tests/test_transform.py",
    "factory": "tests/test_calls.py",
    "schedule_factory": "tests/test_calls.py",
    "incremental_update": "tests/test_transform.py",
    "periodic_update": "tests/test_transform.py",
    "global_norm": "tests/test_tree.py",
    "compile": "tests/test_compile.py",
    "pack": "tests/test_pack.py",
    "pack_like": "tests/test_pack.py",
    "unpack": "tests/test_pack.py",
    "per_example_global_norm_clip": "tests/transforms/test_clipping.py",
    "per_example_layer_norm_clip": "tests/transforms/test_clipping.py",
    "unitwise_norm": "tests/transforms/test_clipping.py",
    "unitwise_clip": "tests/transforms/test_clipping.py",
    **LATER_OPTIMIZERS_ELSEWHERE,
    **MASKING_ELSEWHERE,
    **HYPERPARAMS_ELSEWHERE,
    **ACCUMULATION_ELSEWHERE,
    **AVERAGING_ELSEWHERE,
    **MONITORS_ELSEWHERE,
}
"""Public functions that are no transformation or schedule, and the file that tests them."""
