"""What a device hands back of its memory, and that it goes on working with what it handed back."""

from __future__ import annotations

import subprocess
import sys

import pytest

GIVEN_BACK = """
import re, numpy
from device_runtime import memory
before = numpy.linalg.svd(numpy.arange(12.0).reshape(3, 4))[1]
first = memory.resident()
memory.forget_the_start()
left = memory.resident()
assert numpy.array_equal(numpy.linalg.svd(numpy.arange(12.0).reshape(3, 4))[1], before)
assert re.sub("[aeiou]", "", "modality") == "mdlty"
import decimal  # what was not there yet is loaded as ever
print(first, left)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what is mapped")
def test_code_that_was_handed_back_still_runs_and_takes_less_memory():
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, left = map(int, done.stdout.split())
    assert left < first - 4 * 2**20
