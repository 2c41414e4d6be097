"""The imperative shell: configuration, stages, reports, trackers, data and models."""

import os

# Before torch starts its threads: those that wait must sleep. Spinning on cores that others use made small nets up to
# 30 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
