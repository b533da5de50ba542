"""JSON Lines, and JSON files that hold one list."""

import json
from typing import Any

from training.data.decode import decode_file, decode_line
from training.data.tables import Record, Table, kind_name


def read_jsonl(content: bytes, table: Table) -> None:
    """One object on each line; empty lines are passed over."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(decode_line(line, table, number), object_pairs_hook=_unique_keys)
        except json.JSONDecodeError as error:
            what = f"not JSON: {error.msg} at column {error.colno}"
            table.problem(number, what, "write one whole JSON object on the line")
        except (ValueError, RecursionError) as error:
            table.problem(number, *_unfit(error))
        else:
            _add(table, number, value)


def read_json(content: bytes, table: Table) -> None:
    """A list of objects; its rows are counted, not its lines."""
    try:
        values = json.loads(decode_file(content, table), object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        table.problem(0, what, "write one list of objects; one object on each line is a .jsonl file")
        return
    except (ValueError, RecursionError) as error:
        table.problem(0, *_unfit(error))
        return
    if not isinstance(values, list):
        table.problem(0, f"holds a JSON {kind_name(values)}, not a list", "write one list of objects")
        return
    for number, value in enumerate(values, start=1):
        _add(table, number, value)


def _add(table: Table, number: int, value: Any) -> None:
    if isinstance(value, dict):
        table.records.append(Record(number, value))
    else:
        what = f"a JSON {kind_name(value)}, not an object"
        table.problem(number, what, "write an object with the columns as keys")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {', '.join(map(repr, repeated))} stands more than once")
    return values


def _unfit(error: Exception) -> tuple[str, str]:
    """What and mend for JSON that parses and still cannot be used."""
    if isinstance(error, RecursionError):
        return "JSON nested too deeply", "write plain strings as values"
    return str(error), "keep one of them"
