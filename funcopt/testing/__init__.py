"""Property tests for update rules: laws that optimizers obey, and cases to try them on. Needs hypothesis.

from funcopt.testing import check

check(my_optimizer)
"""
