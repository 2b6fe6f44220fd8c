"""Selection of the keyframes that an archive drops at its size limit, and repair of the chain of links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.odometry import ChainLink, Location
from loftr_ros.places.archive_files import Files
from loftr_ros.places.archive_rows import link_columns, named, to_link, to_name
from loftr_ros.places.keyframe import KeyframeName

# Newest keyframes of each robot that always stay, because the next keyframe links to one of them.
_NEWEST = 2
# Keyframes dropped per commit. Adding waits for at most one such commit.
_STEP = 64
_ROW_BYTES = 2000
_LINK = ["robot", "id", "previous", "link_pose", "link_covariance", "link_is_metric"]
_ALL = [*_LINK[:3], "link_is_metric", "stamp_ns", "image_bytes", "depth_bytes", "descriptor"]


def drop(table: Any, files: Files, size: int, writing: AbstractContextManager[Any]) -> int:
    """Drop the least informative keyframes of all robots until `size` bytes are free.

    The least informative keyframes are those most similar to the keyframe before them. Of neighbours in the chain only
    one is dropped per round; the similarities are then computed again. The first keyframes of a chain go last.

    Args:
        table: of the archive.
        files: storage of the images.
        size: bytes to free.
        writing: lock held during each step.

    Returns:
        Number of dropped keyframes.
    """
    dropped = 0
    while size > 0:
        rows = table.search().select(_ALL).to_arrow()
        sizes = rows["image_bytes"].to_numpy() + rows["depth_bytes"].to_numpy() + _ROW_BYTES
        chosen = least_informative(
            rows["robot"].to_pylist(),
            rows["id"].to_numpy(),
            rows["previous"].to_pylist(),
            rows["link_is_metric"].to_pylist(),
            rows["stamp_ns"].to_numpy(),
            rows["descriptor"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1),
            sizes,
            size,
        )
        if not chosen:
            break
        names = [to_name(row) for row in rows.select(["robot", "id"]).take(chosen).to_pylist()]
        size -= int(sizes[chosen].sum())
        del rows
        for start in range(0, len(names), _STEP):
            with writing:
                old = _drop_step(table, names[start : start + _STEP])
            files.delete(old)
        dropped += len(names)
    return dropped


def least_informative(
    robots: Sequence[str],
    ids: NDArray[np.int64],
    previous: Sequence[int | None],
    metric: Sequence[bool | None],
    stamps: NDArray[np.int64],
    descriptors: NDArray[np.float32],
    sizes: NDArray[np.int64],
    size: int,
) -> list[int]:
    """Choose the keyframes to drop in one round, out of N.

    Args:
        robots, ids: (N,) names.
        previous: (N,) id of the predecessor in the chain; None for a chain's first keyframe.
        metric: (N,) whether the lengths of that link are in metres.
        stamps: (N,) nanoseconds.
        descriptors: (N, D) of length one.
        sizes: (N,) bytes.
        size: bytes to free.

    Returns:
        indices in the order of choice; no two of them are linked.
    """
    at = {name: index for index, name in enumerate(zip(robots, ids.tolist(), strict=True))}
    before = np.array([at.get((robot, link), -1) for robot, link in zip(robots, previous, strict=True)], np.int64)
    after: dict[int, list[int]] = {}
    for index, link in enumerate(before):
        if link >= 0:
            after.setdefault(int(link), []).append(index)
    linked = before >= 0
    similarity = np.full(len(ids), -2.0)
    similarity[linked] = np.einsum("nd,nd->n", descriptors[linked], descriptors[before[linked]])
    # Links of different units cannot be joined. The keyframe between them goes last, and the chain breaks there.
    for index, followers in after.items():
        if any(metric[follower] != metric[index] for follower in followers):
            similarity[index] = -2.0
    newest: dict[str, list[int]] = {}
    for index in np.argsort(ids):
        newest.setdefault(robots[index], []).append(int(index))
    taken = {index for indices in newest.values() for index in indices[-_NEWEST:]}
    chosen: list[int] = []
    for index in np.lexsort((stamps, -similarity)).tolist():
        if size <= 0:
            break
        if index in taken:
            continue
        chosen.append(index)
        size -= int(sizes[index])
        # Its neighbours stay in this round.
        taken.update([index, int(before[index]), *after.get(index, [])])
    return chosen


def joined(first: ChainLink | None, second: ChainLink) -> ChainLink | None:
    """Join the link of a dropped keyframe with the link of its successor.

    None if the dropped keyframe had no link, or one of another unit of length. The chain then begins anew.
    """
    if first is None or first.is_metric != second.is_metric:
        return None
    whole = Location(first.pose, first.covariance, first.is_metric).moved(second.pose, second.covariance)
    return ChainLink(first.previous, whole.pose, whole.covariance, first.is_metric)


def _drop_step(table: Any, names: Sequence[KeyframeName]) -> list[str]:
    """Close the chain over the named keyframes and delete their rows. No two of them may be neighbours. Files remain.

    The links are written first, so a crash in between leaves a keyframe that the chain skips.
    """
    import pyarrow as pa

    gone: dict[KeyframeName, Mapping[str, Any]] = {
        to_name(row): row for row in table.search().where(named(names)).select([*_LINK, "file"]).to_arrow().to_pylist()
    }
    if not gone:
        return []
    changed = []
    for row in table.search().where(named(list(gone), "previous")).select(_LINK).to_arrow().to_pylist():
        link = to_link(row)
        assert link is not None
        over = joined(to_link(gone[KeyframeName(row["robot"], link.previous)]), link)
        changed.append({"robot": row["robot"], "id": row["id"], **link_columns(over)})
    if changed:
        layout = pa.schema([table.schema.field(name) for name in _LINK])
        table.merge_insert(["robot", "id"]).when_matched_update_all().execute(pa.Table.from_pylist(changed, layout))
    table.delete(named(list(gone)))
    return [row["file"] for row in gone.values() if row["file"]]
