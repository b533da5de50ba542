"""``python -m training``, which ``tenora train`` starts as a process of its own."""

import gc

gc.disable()  # until the first step, or for good in a command on rows alone

from training.cli import main  # noqa: E402 (importing is most of what it is disabled for)

main()
