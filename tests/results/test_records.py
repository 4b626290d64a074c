"""Records and their store."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.errors import GraftbenchError
from harness.results import Record, Store, TaskOutcome, from_json, read_record, to_json


def record(key: str = "k1") -> Record:
    return Record(
        key=key,
        label="ties",
        role="method",
        capability=None,
        recipe={"method": "ties", "hyperparameters": {"density": 0.2}},
        selection={"how": "default"},
        zoo={"name": "tiny", "digest": "z"},
        suite={"name": "tiny", "split": "test", "digest": "s"},
        engine={"name": "hf"},
        versions={"torch": "2"},
        weights_digest="w",
        timings={"merge": 0.1},
        tasks=(
            TaskOutcome("t1", "math", "exact_match,none", 0.0, ("a", "b"), (1.0, 0.0)),
            TaskOutcome("t2", "math", "exact_match,none", 0.0, ("c",), (1.0,)),
            TaskOutcome("t3", "code", "pass@1,none", 0.0, ("d",), (0.5,), {"loose,none": (1.0,)}),
        ),
    )


def full_record() -> Record:
    """With everything that the current format can hold."""
    task = TaskOutcome(
        "t1",
        "math",
        "exact_match,none",
        0.0,
        ("a", "b"),
        (1.0, 0.0),
        prompts="p",
        counts={"empty": 1, "truncated": 0},
        timings={"prepare": 0.1, "answer": 2.0, "score": 0.2},
        clusters=("passage 1", "passage 1"),
    )
    circumstances = {"sandbox": None, "model": {"dtype": "float32"}}
    costs = {"peak_memory_bytes": 2**20, "extra_bytes_per_expert": 0, "data_needed": "none"}
    return replace(record(), tasks=(task,), circumstances=circumstances, costs=costs)


def test_records_of_the_second_format_are_read() -> None:
    """Their costs are unknown, and every item stands alone."""
    fields = json.loads(to_json(record()))
    del fields["costs"]
    for task in fields["tasks"]:
        del task["clusters"]
    old = from_json(json.dumps(fields | {"format_version": 2}))
    assert old == record()
    assert (old.costs, old.tasks[0].clusters) == ({}, ())


def test_records_of_the_first_format_are_read() -> None:
    """They lack what was not recorded then."""
    fields = json.loads(to_json(record()))
    del fields["circumstances"], fields["costs"]
    for task in fields["tasks"]:
        del task["prompts"], task["counts"], task["timings"], task["clusters"]
    old = from_json(json.dumps(fields | {"format_version": 1}))
    assert old == record()
    assert (old.circumstances, old.tasks[0].prompts, old.tasks[0].counts) == ({}, None, {})


def test_committed_records_are_read() -> None:
    """Boards are made from records of earlier versions, and stay what they were."""
    for file in sorted((Path(__file__).parents[2] / "leaderboards").glob("*/records/*.json")):
        read = read_record(file)
        assert from_json(to_json(read)) == read
        assert read.key == file.stem


def test_scores_are_means_over_tasks_then_capabilities() -> None:
    # math: (50 + 100)/2 = 75, code: 50; the mean over capabilities is 62.5, over tasks it would be 66.7
    assert record().capability_scores() == {"math": 75.0, "code": 50.0}
    assert record().objective() == 62.5


def test_json_gives_the_same_record_back() -> None:
    for original in (record(), full_record()):
        text = to_json(original)
        assert from_json(text) == original
        assert to_json(from_json(text)) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "record format 99"),
        ({"role": "judge"}, "role"),
        ({"suite": None}, "suite"),
        ({"unknown": 1}, "unknown option 'record.unknown'"),
        ({"tasks": []}, "no tasks"),
        ({"tasks": [{"task": "t"}]}, "tasks"),
    ],
)
def test_what_is_no_record_is_refused_with_the_file(change: dict[str, object], message: str) -> None:
    fields = json.loads(to_json(record())) | change
    with pytest.raises(GraftbenchError, match=rf"some/file\.json.*{message}"):
        from_json(json.dumps(fields), source="some/file.json")


@pytest.mark.parametrize(
    ("ids", "outcomes", "message"),
    [
        (("a",), (1.0, 0.0), "1 item ids"),
        ((), (), "no items"),
        (("a", "a"), (1.0, 1.0), "repeat"),
        (("a",), (1.5,), "0..1"),
    ],
)
def test_contradictory_outcomes_are_refused(ids: tuple[str, ...], outcomes: tuple[float, ...], message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        TaskOutcome("t", "math", "m,none", 0.0, ids, outcomes)


def test_a_cluster_for_each_item_or_none() -> None:
    with pytest.raises(GraftbenchError, match="2 item ids, but 1 clusters"):
        TaskOutcome("t", "math", "m,none", 0.0, ("a", "b"), (1.0, 0.0), clusters=("passage",))


def test_the_store_keeps_and_finds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get("k1") is None
    store.put(record("k2"))
    store.put(record("k1"), pa.table({"answer": ["4"]}))
    assert store.get("k1") == record("k1")
    assert [found.key for found in store.records()] == ["k1", "k2"]
    assert pq.read_table(tmp_path / "k1.parquet").to_pydict() == {"answer": ["4"]}
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"k1.json", "k1.parquet", "k2.json"}


def test_a_corrupt_record_is_named_and_the_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    store.put(record("k1"))
    (tmp_path / "k0.json").write_text('{"format_version": 1, "key"')
    with caplog.at_level(logging.WARNING):
        assert [found.key for found in store.records()] == ["k1"]
    assert "k0.json" in caplog.text
    with pytest.raises(GraftbenchError, match=r"k0\.json"):
        store.get("k0")


def test_a_record_under_another_name_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record("k1")).rename(tmp_path / "k9.json")
    with pytest.raises(GraftbenchError, match="holds the record k1"):
        store.get("k9")


def test_putting_again_replaces(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(record())
    store.put(replace(record(), label="renamed"))
    found = store.get("k1")
    assert found is not None and found.label == "renamed"
