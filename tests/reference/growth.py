"""Vocabularies that go on from day to day, by plain loops over dictionaries."""


def grow(days, min_count, expire_days=0):
    """{value: id}, {value: count} of all, and the growth of each day.

    Args:
      days: lists of values, the first of day 1.
    """
    ids, counts, seen, said = {}, {}, {}, []
    for day, values in enumerate(days, 1):
        fresh = {value for value in values if value not in ids}
        for value in values:
            counts[value] = counts.get(value, 0) + 1
            seen[value] = day
        ready = [v for v in counts if v not in ids and counts[v] >= min_count]
        ready.sort(key=lambda v: (-counts[v], v.encode()))

        gone = []
        if expire_days:
            old = [v for v in ids if seen[v] <= day - expire_days]
            old.sort(key=lambda v: (seen[v], counts[v], v.encode()))
            gone = old[: len(ready)]
        free = sorted(ids.pop(v) for v in gone)
        known = len(ids)
        behind = known + len(free)
        for i, value in enumerate(ready):
            ids[value] = free[i] if i < len(free) else behind + 1 + i - len(free)

        for value in [v for v in counts if v not in ids]:
            if expire_days and (value in gone or seen[value] <= day - expire_days):
                del counts[value], seen[value]
        said.append((known, len(fresh), len(ready), len(gone)))
    return ids, counts, said
