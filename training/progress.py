"""What is seen while a run works: a bar on a terminal, plain lines elsewhere, JSON lines for programs."""

import json
import time
from abc import ABC, abstractmethod
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from training.reporting.results import Point, Sample, Step

_PLAIN_LINES = 10  # in an epoch
_SMOOTHING = 0.9


class Progress(ABC):
    """Told of steps, measurements and sample answers."""

    @abstractmethod
    def start(self, total: int, steps: int, done: int) -> None:
        """A run of ``total`` steps begins, ``steps`` an epoch, of which ``done`` were taken before."""

    @abstractmethod
    def step(self, step: Step, tokens_per_second: float) -> None:
        """One step is done."""

    @abstractmethod
    def measured(self, point: Point) -> None:
        """Validation figures."""

    @abstractmethod
    def sample(self, sample: Sample) -> None:
        """The answer to the first validation row."""

    def stop(self) -> None:  # noqa: B027 (most have nothing to take away)
        """The run is over or was stopped; may be called twice."""


class Silent(Progress):
    """For the processes that train along."""

    def start(self, total: int, steps: int, done: int) -> None:
        """Say nothing."""

    def step(self, step: Step, tokens_per_second: float) -> None:
        """Say nothing."""

    def measured(self, point: Point) -> None:
        """Say nothing."""

    def sample(self, sample: Sample) -> None:
        """Say nothing."""


class JsonLines(Progress):
    """One object a line: ``{"event": "step", …}``."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self, total: int, steps: int, done: int) -> None:
        """``start``."""
        self._write("start", {"steps": total, "steps_in_epoch": steps, "done": done})

    def step(self, step: Step, tokens_per_second: float) -> None:
        """``step``."""
        self._write("step", {**step.model_dump(), "tokens_per_second": round(tokens_per_second, 1)})

    def measured(self, point: Point) -> None:
        """``point``."""
        self._write("point", point.model_dump())

    def sample(self, sample: Sample) -> None:
        """``sample``."""
        self._write("sample", sample.model_dump())

    def _write(self, event: str, values: dict[str, Any]) -> None:
        write_json(self._console, event, values)


class Shown(Progress):
    """For people: a bar with the last sample below it on a terminal, some lines an epoch elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._steps = self._first = 0
        self._loss: float | None = None
        self._began = 0.0
        self._bar: Bar | None = None
        self._live: Live | None = None
        self._said = Text("")

    def start(self, total: int, steps: int, done: int) -> None:
        """Begin."""
        self._total, self._steps, self._first, self._began = total, steps, done, time.monotonic()
        if done:
            self._console.print(f"going on after step {done} of {total}")
        if not self._console.is_terminal:
            return
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  lr {task.fields[rate]}  {task.fields[speed]} tokens/s"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
        )
        self._bar.add_task("training", total=total, completed=done, loss="-", rate="-", speed="-")
        self._live = Live(get_renderable=self._view, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def step(self, step: Step, tokens_per_second: float) -> None:
        """Move the bar, or write a line now and then."""
        self._loss = step.loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * step.loss
        epoch = f"epoch {-(-step.step // self._steps)}/{self._total // self._steps}"
        figures: dict[str, Any] = {
            "loss": f"{self._loss:.3f}",
            "rate": f"{step.learning_rate:.1e}",
            "speed": f"{tokens_per_second:,.0f}",
        }
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step.step, description=epoch, **figures)
        elif step.step % max(1, self._steps // _PLAIN_LINES) == 0:
            left = (time.monotonic() - self._began) / (step.step - self._first) * (self._total - step.step)
            self._console.print(
                f"{epoch}  step {step.step}/{self._total}  loss {figures['loss']}  lr {figures['rate']}  "
                f"{figures['speed']} tokens/s  {_clock(left)} left"
            )

    def measured(self, point: Point) -> None:
        """Write the figures."""
        figures = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in point.validation.items())
        place = f"epoch {point.epoch:.0f}" if point.whole else f"step {point.step}"
        self._console.print(
            f"{place if point.step else 'before'}: train loss {point.train_loss:.4f}  validation {figures}"
        )

    def sample(self, sample: Sample) -> None:
        """Write it, or show it below the bar."""
        said = f"  sample: {escape(_line(sample.prompt))} → [bold]{escape(_line(sample.answer))}[/]"
        self._said = Text.from_markup(said)
        if self._live is None:
            self._console.print(said)

    def stop(self) -> None:
        """Take the bar away."""
        if self._live is not None:
            self._live.stop()
            self._console.print(self._said)
            self._live = self._bar = None

    def _view(self) -> Group:
        assert self._bar is not None, "shown while the bar is there"
        return Group(self._bar, self._said)


class Both(Progress):
    """Tells two."""

    def __init__(self, one: Progress, other: Progress) -> None:
        self._both = (one, other)

    def start(self, total: int, steps: int, done: int) -> None:
        """Tell both."""
        for each in self._both:
            each.start(total, steps, done)

    def step(self, step: Step, tokens_per_second: float) -> None:
        """Tell both."""
        for each in self._both:
            each.step(step, tokens_per_second)

    def measured(self, point: Point) -> None:
        """Tell both."""
        for each in self._both:
            each.measured(point)

    def sample(self, sample: Sample) -> None:
        """Tell both."""
        for each in self._both:
            each.sample(sample)

    def stop(self) -> None:
        """Stop both."""
        for each in self._both:
            each.stop()


def write_json(console: Console, event: str, values: dict[str, Any]) -> None:
    """One event on a line of its own, as it is: neither markup nor :emoji: codes are read in it."""
    console.out(json.dumps({"event": event, **values}, ensure_ascii=False), highlight=False)


def _line(text: str, most: int = 100) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
