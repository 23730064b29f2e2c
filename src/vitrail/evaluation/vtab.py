"""What nineteen tasks come to: a mean over each group and over all; a part of them is never called VTAB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.data.vtab import GROUPS


def summary(top1: Mapping[str, float]) -> dict[str, Any]:
    """Means over the tasks that were measured, each beside how many there are.

    Args:
        top1: task as table 9 of the paper calls it to its share of right answers on the test set.

    Returns:
        groups, each with its mean (None without a task), how many were measured and of how many; mean, over tasks, not
        over groups; vtab, the same mean where all nineteen are there, else None; missing, the others.
    """
    groups = {}
    for group, tasks in GROUPS.items():
        found = [top1[task] for task in tasks if task in top1]
        groups[group] = {"mean": sum(found) / len(found) if found else None, "found": len(found), "of": len(tasks)}
    missing = [task for tasks in GROUPS.values() for task in tasks if task not in top1]
    mean = sum(top1.values()) / len(top1) if top1 else None
    return {"groups": groups, "mean": mean, "vtab": None if missing else mean, "missing": missing}
