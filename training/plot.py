"""The picture of a run: both losses over epochs, tokens seen as the second axis."""

from pathlib import Path

from training.history import History


def plot(history: History, file: Path, title: str) -> None:
    """Draw ``history`` into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=130)
    steps_in_epoch = history.epochs[0].step
    places = [step / steps_in_epoch for step, _, _ in history.steps]
    axes.plot(places, [loss for _, _, loss in history.steps], color="C0", alpha=0.2, linewidth=0.8, label="each step")
    epochs = [point.epoch for point in history.points]
    axes.plot(epochs, [point.train_loss for point in history.points], "C0o-", markersize=3, label="train loss")
    validation = [point.validation["loss"] for point in history.points]
    axes.plot(epochs, validation, "C1o--", markersize=3, label="validation loss")
    best = history.best
    name = history.metric.replace("_", " ")
    place = ([best.epoch], [best.validation["loss"]])
    axes.plot(*place, "o", markersize=9, fillstyle="none", color="0.3", label=f"best epoch by {name}", clip_on=False)
    axes.set(xlabel="epochs", ylabel="loss", title=title, ylim=(0, None), xlim=(0, max(epochs)))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    # Tokens per epoch are nearly constant, so a linear second axis is right to within a batch.
    tokens = axes.twiny()
    tokens.set(xlim=(0, history.points[-1].tokens), xlabel="tokens seen")
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
