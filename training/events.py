"""TensorBoard's event files, for those who watch their runs there (``--tensorboard``)."""

from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.progress import Progress
from training.reporting.results import Point, Sample, Step


class Events(Progress):
    """Losses, the learning rate, validation figures and samples by step."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError("--tensorboard needs tensorboard: pip install 'tenora[tensorboard]'") from error
        self._writer: Any = SummaryWriter(str(folder))

    def start(self, total: int, steps: int, done: int) -> None:
        """Nothing to write yet."""

    def step(self, step: Step, tokens_per_second: float) -> None:
        """The step's loss, rate and speed."""
        self._writer.add_scalar("train/loss", step.loss, step.step)
        self._writer.add_scalar("train/learning_rate", step.learning_rate, step.step)
        self._writer.add_scalar("train/tokens_per_second", tokens_per_second, step.step)

    def measured(self, point: Point) -> None:
        """Validation figures."""
        for name, value in point.validation.items():
            self._writer.add_scalar(f"validation/{name}", value, point.step)

    def sample(self, sample: Sample) -> None:
        """Prompt and answer as text."""
        self._writer.add_text("sample", f"{sample.prompt}\n\n**{sample.answer}**")

    def stop(self) -> None:
        """Write what is left, and let go of the file."""
        self._writer.close()
