"""Free time between appointments. Times are minutes since midnight; an appointment is (start, end)."""

Slot = tuple[int, int]


def parse_time(text: str) -> int:
    """Minutes since midnight of "9:30"."""
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def merged(slots: list[Slot]) -> list[Slot]:
    """The same times with overlapping and touching slots in one, in their order."""
    result: list[Slot] = []
    for start, end in sorted(slots):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def free(appointments: list[Slot], day: Slot) -> list[Slot]:
    """What is left of a day."""
    left, at = [], day[0]
    for start, end in merged(appointments):
        if start > at:
            left.append((at, min(start, day[1])))
        at = max(at, end)
    if at < day[1]:
        left.append((at, day[1]))
    return left
