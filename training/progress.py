"""What is seen while a run works: a bar on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.history import Point
from training.task import Sampled

_PLAIN_LINES = 10  # in an epoch
_SMOOTHING = 0.9


class Progress:
    """Tells of steps, measurements and sample answers."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs = self._steps = self._step = 0
        self._loss: float | None = None
        self._began = 0.0
        self._bar: Bar | None = None

    def start(self, epochs: int, steps: int) -> None:
        """Begin a run of ``epochs`` with ``steps`` each."""
        self._epochs, self._steps, self._began = epochs, steps, time.monotonic()
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
            )
            self._bar.add_task("training", total=epochs * steps, loss="-")
            self._bar.start()

    def step(self, loss: float) -> None:
        """One step is done; ``loss`` is its batch's."""
        self._step += 1
        self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        epoch = -(-self._step // self._steps)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=1, loss=f"{self._loss:.3f}")
            self._bar.update(self._bar.task_ids[0], description=f"epoch {epoch}/{self._epochs}")
        elif self._step % max(1, self._steps // _PLAIN_LINES) == 0:
            total = self._epochs * self._steps
            left = (time.monotonic() - self._began) / self._step * (total - self._step)
            self._console.print(
                f"epoch {epoch}/{self._epochs}  step {self._step}/{total}  loss {self._loss:.3f}  {_clock(left)} left"
            )

    def measured(self, point: Point) -> None:
        """Validation figures."""
        figures = "  ".join(f"validation {name} {value:.4f}" for name, value in point.validation.items())
        place = f"epoch {point.epoch:.0f}" if point.whole else f"step {point.step}"
        self._console.print(f"{place if point.step else 'before'}: train loss {point.train_loss:.4f}  {figures}")

    def sample(self, sampled: Sampled) -> None:
        """The answer to the first validation row."""
        self._console.print(f"  sample: {escape(_line(sampled.prompt))} → [bold]{escape(_line(sampled.answer))}[/]")

    def stop(self) -> None:
        """Take the bar away; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _line(text: str, most: int = 100) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
