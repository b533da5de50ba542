"""``python -m training.data`` is what ``tenora data`` starts."""

from training.data.cli import main

main()
