import subprocess
import sys

import pytest

FAULTS_OF_THE_SECOND = """
import resource, sys
import numpy as np
from imprint_jax.runtime import host_memory

if sys.argv[1] == "kept":
    host_memory.keep_freed()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    before = faults()
    large = np.full(64 * 2**20, 1, np.uint8)
    del large
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator is told")
def test_memory_that_was_freed_is_not_faulted_in_again():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS_OF_THE_SECOND, how]))
        for how in ("kept", "returned")
    }
    assert faults["kept"] < 16 < faults["returned"]
