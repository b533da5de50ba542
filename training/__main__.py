"""``python -m training``, which ``tenora train`` starts as a process of its own."""

from training.cli import main

main()
