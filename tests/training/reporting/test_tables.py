import re
from io import StringIO

from rich.console import Console

from tests.training.reporting.runs import answers, classifier, instruct_results, many_labels, multi_label, results
from training.reporting.results import Results, Sample
from training.reporting.tables import confusion_table, labels_table, metrics_table, show_report, show_results


def shown(made: Results, *, colours: bool = False, title: str | None = None) -> str:
    console = Console(file=StringIO(), width=120, highlight=False, color_system="standard" if colours else None)
    if title is None:
        show_results(console, made)
    else:
        show_report(console, made, title)
    written = console.file
    assert isinstance(written, StringIO)
    return written.getvalue()


def flat(text: str) -> str:
    return re.sub(r"[\s│┃]+", " ", text)


def test_before_after_and_baselines_stand_side_by_side() -> None:
    text = flat(shown(results()))
    assert "300 held-out rows (test)" in text
    assert "before after majority class TF-IDF + logistic regression" in text
    assert "accuracy 0.533 0.857 0.500 0.773" in text
    assert "loss 1.000 0.297 – –" in text


def test_better_is_green_and_worse_is_red() -> None:
    better = shown(results(), colours=True)
    assert "\x1b[32m0.857" in better
    assert "\x1b[32m0.297" in better  # a loss is better where it is lower
    worse = shown(results(before=results().after, after=results().before), colours=True)
    assert "\x1b[31m0.533" in worse
    assert "\x1b[31m1.000" in worse


def test_labels_and_a_small_matrix() -> None:
    text = flat(shown(results()))
    assert "Negative 0.990 0.698 0.819 139" in text
    assert "Negative 97 42" in text
    assert "Positive 1 160" in text


def test_of_many_labels_the_commonest() -> None:
    report = many_labels(77).after.classes
    assert report is not None
    table = labels_table(report)
    assert table.row_count == 40
    assert "(the 40 with most rows of 77)" in str(table.title)
    mistakes = confusion_table(report)
    assert mistakes is not None
    assert mistakes.row_count == 10


def test_of_several_labels_what_was_missed_and_wrongly_given() -> None:
    made = multi_label(3)
    report = made.after.classes
    assert report is not None
    text = flat(shown(made))
    assert "label precision recall F1 rows missed wrongly given" in text
    for one, score in zip(report.decisions, report.labels, strict=True):
        assert f" {score.support} {one.false_negatives} {one.false_positives} " in text


def test_no_mistakes_no_table() -> None:
    report = classifier(tuple("abcdefghijkl"), 100.0, 50).classes
    assert report is not None
    perfect = report.model_copy(update={"confusions": ()})
    assert confusion_table(perfect) is None


def test_answers_side_by_side_with_the_judge_s_scores() -> None:
    text = flat(shown(instruct_results()))
    assert "input before after expected" in text
    assert "wrong score 12.5 right score 50.23" in text
    assert "judge before: 12.5 of 100 by llama-3-8b, 4 of 5 answers scored, 1 replies unparsable" in text
    assert "judge, after against before: 3 won, 1 tied, 1 lost, 0 undecided (win rate 70%)" in text
    assert text.count("question 5: the reply 'ok'") == 1


def test_what_a_classifier_said_to_its_sentences() -> None:
    text = flat(shown(results()))
    assert "sentences" in text
    assert "It was good. Negative Negative Positive wrong wrong" in text
    assert "sample answers" not in text


def test_limits_stand_at_the_end() -> None:
    lines = shown(results()).splitlines()
    assert lines[-1] == "note: 12 texts of more than 512 tokens lose their left end."


def test_words_of_the_data_are_no_markup() -> None:
    odd = answers(("[red]not red[/] [/nonsense]",), 1.0, 1.0)
    sample = Sample(prompt="[bold]", answer="[/]", expected="[x]", right=False)
    odd = odd.model_copy(update={"samples": (*odd.samples, sample)})
    text = shown(instruct_results(before=odd, after=odd, notes=("[/oops]",)))
    assert "[red]not red[/]" in text
    assert "note: [/oops]." in text


def test_a_report_says_where_the_adapter_comes_from() -> None:
    text = flat(shown(results(stopped="early"), title="acme/x@0123456789ab"))
    assert text.startswith("acme/x@0123456789ab")
    assert "base distilbert-base-uncased@12040accade4e8a0f71eabdb258fecc2e7e948be (0123456789ab)" in text
    assert "trained 628,994 of 67,584,004 parameters (0.93%)" in text
    assert "5 min 12 s, 1,606 tokens a second, cpu, bfloat16, 2 threads, stopped early" in text
    assert "batch size 4" in text
    assert "somebody" not in text


def test_a_metric_that_only_one_side_has_is_shown() -> None:
    before = results().before.model_copy(update={"metrics": {"loss": 1.0}})
    assert metrics_table(results(before=before)).row_count == 5
    assert "accuracy – 0.857" in flat(shown(results(before=before)))
