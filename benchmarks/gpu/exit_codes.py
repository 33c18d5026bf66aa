"""Exit codes of the program and of the processes that it starts."""

FINISHED = 0
FAILED = 1  # a case or a test failed
CASES_LEFT = 3  # none failed; run it again for the cases that are left
DEVICE_LOST = 4  # the GPU does not work in this process any more: start another one
