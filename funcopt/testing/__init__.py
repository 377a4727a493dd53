"""Property tests for update rules: laws that optimizers obey, and cases to try them on. Needs hypothesis.

from funcopt.testing import check

check(my_optimizer)
"""

# Checking a transformation
from funcopt.testing.check import (
    check as check,
    fixed_case as fixed_case,
    given_optimizer as given_optimizer,
    violations as violations,
)
from funcopt.testing.declared import Declared as Declared
from funcopt.testing.law import Law as Law, law as law
from funcopt.testing.laws import EAGER as EAGER, LAWS as LAWS, TRANSFORMED as TRANSFORMED

# What to try it on
from funcopt.testing.printing import source as source
from funcopt.testing.problems import Problem as Problem, minimise as minimise
from funcopt.testing.schedule_laws import check_schedule as check_schedule
from funcopt.testing.scripts import reproducer as reproducer
from funcopt.testing.session import TrainingSession as TrainingSession, session as session
from funcopt.testing.strategies import (
    gradient_sequences_for as gradient_sequences_for,
    gradients_for as gradients_for,
    hyperparameters as hyperparameters,
    params as params,
    pytrees as pytrees,
    schedules as schedules,
    states as states,
    tensors as tensors,
    transformations as transformations,
)
from funcopt.testing.violation import LawViolation as LawViolation
