"""Tasks that share the items of a list without talking to each other."""

from __future__ import annotations

import pytest

from clip_negatives.distributed.task import Task
from clip_negatives.errors import InputError


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 3, 20])
def test_every_item_belongs_to_one_task_and_each_task_sees_all_items(count: int, n: int) -> None:
    items = list(range(n))
    tasks = [Task(number, count) for number in range(1, count + 1)]
    assert sorted(item for task in tasks for item in task.own(items)) == items
    for task in tasks:
        assert sorted([*task.own(items), *task.others(items)]) == items


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0", "1/3/5", ""])
def test_text_that_names_no_task_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="NUMBER/COUNT with NUMBER from 1"):
        Task.parse(text)


def slurm(**values: str) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({}, "1/1"),
        (slurm(ID="0", COUNT="100", MIN="0"), "1/100"),
        (slurm(ID="100", COUNT="100", MIN="1", STEP="1"), "100/100"),
        (slurm(ID="12", COUNT="4", MIN="0", STEP="4"), "4/4"),
        ({"RANK": "2", "WORLD_SIZE": "8"}, "3/8"),
        ({"RANK": "2", "WORLD_SIZE": "8", **slurm(ID="0", COUNT="2")}, "1/2"),
    ],
)
def test_task_of_a_slurm_array_or_of_torchrun(variables: dict[str, str], text: str) -> None:
    assert str(Task.of_environment(variables)) == text


@pytest.mark.parametrize(
    "variables", [slurm(ID="x", COUNT="2"), slurm(ID="1"), slurm(ID="9", COUNT="2", MIN="3"), {"WORLD_SIZE": "x"}]
)
def test_array_whose_tasks_have_no_successive_numbers_is_an_error(variables: dict[str, str]) -> None:
    with pytest.raises(InputError, match="Use task="):
        Task.of_environment(variables)
