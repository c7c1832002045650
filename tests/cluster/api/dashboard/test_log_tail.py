"""What log files say, as it is added to them, and who is told."""

import asyncio
import json

from cluster.api.dashboard.log_tail import KEPT_LINES, LogTail
from tests.cluster.api.dashboard.watched import watching
from tests.support.virtual_time import run


def line(second, text, level="INFO"):
    return f"2026-11-30 10:00:{second:02},000 {level} a.b: {text}"


def add(folder, name, *lines):
    with (folder / f"{name}.log").open("a", encoding="utf-8") as file:
        file.write("".join(f"{each}\n" for each in lines))


def test_lines_of_all_processes_are_told_in_the_order_of_their_times(tmp_path):
    add(tmp_path, "worker-0", line(1, "one"), line(3, "three"))
    add(tmp_path, "coordinator", line(2, "two"), "Traceback", "  x", line(4, "four"))
    (tmp_path / "worker-0.out").write_text("what a library printed\n")
    tail = LogTail(tmp_path)
    first = [
        f"worker-0 {line(1, 'one')}",
        f"coordinator {line(2, 'two')}",
        "coordinator Traceback",
        "coordinator   x",
        f"worker-0 {line(3, 'three')}",
        f"coordinator {line(4, 'four')}",
    ]
    assert tail.read() == first
    assert tail.read() == []
    add(tmp_path, "worker-0", line(5, "five"))
    assert tail.read() == [f"worker-0 {line(5, 'five')}"]
    assert list(tail.lines) == [*first, f"worker-0 {line(5, 'five')}"]


def test_line_is_told_once_it_is_whole(tmp_path):
    file = tmp_path / "coordinator.log"
    file.write_text(line(1, "beg"))
    tail = LogTail(tmp_path)
    assert tail.read() == []
    file.write_text(line(1, "begun") + "\n")
    assert tail.read() == [f"coordinator {line(1, 'begun')}"]


def test_of_long_logs_the_last_lines_are_told(tmp_path):
    add(tmp_path, "coordinator", *(line(1, f"{number} {'x' * 1000}") for number in range(1000)))
    tail = LogTail(tmp_path)
    numbers = [int(told.split()[5]) for told in tail.read()]
    assert numbers == list(range(numbers[0], 1000))
    assert 100 < len(numbers) <= KEPT_LINES


def test_rotated_log_is_read_on_from_its_beginning(tmp_path):
    add(tmp_path, "coordinator", line(1, "one"), line(2, "two"))
    tail = LogTail(tmp_path)
    tail.read()
    (tmp_path / "coordinator.log").rename(tmp_path / "coordinator.log.1")
    assert tail.read() == []
    add(tmp_path, "coordinator", line(3, "three"))
    assert tail.read() == [f"coordinator {line(3, 'three')}"]


def test_lines_of_json_are_told_as_text_and_what_is_no_text_too(tmp_path):
    found = {"time": "2026-11-30T10:00:01.000+00:00", "level": "INFO", "logger": "a", "message": "hello", "n": 1}
    add(tmp_path, "coordinator", json.dumps(found))
    with (tmp_path / "coordinator.log").open("ab") as file:
        file.write(b"\xff\xfe\n")
    text, other = LogTail(tmp_path).read()
    assert text.endswith("INFO a: hello")
    assert other.startswith("coordinator ")


def test_folder_that_is_not_there_says_nothing(tmp_path):
    assert LogTail(tmp_path / "none").read() == []


def test_logs_are_told_to_those_with_a_key_alone(prompts, tmp_path):
    @watching
    async def scenario(watched):
        add(tmp_path, "coordinator", line(1, "one"))
        without = await watched.feed()
        await asyncio.sleep(2)
        known = await watched.feed(Authorization="Bearer k")
        await asyncio.sleep(1.1)
        add(tmp_path, "worker-0", line(2, "two"))
        await asyncio.sleep(1.1)
        assert [told["lines"] for told in known.of("logs")] == [
            [f"coordinator {line(1, 'one')}"],
            [f"worker-0 {line(2, 'two')}"],
        ]
        later = await watched.feed(Authorization="Bearer k")
        (told,) = later.of("logs")
        assert told["lines"] == [f"coordinator {line(1, 'one')}", f"worker-0 {line(2, 'two')}"]
        assert without.of("logs") == []
        assert b"a.b" not in without.body
        for feed in (without, known, later):
            await feed.leave()

    run(scenario(prompts, logs=tmp_path, api_key="k"))
