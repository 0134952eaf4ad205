"""The tables of the assignments' pages, drawn from the sources and the kept wrong submissions."""

from dqt_book import show
from dqt_book.assignments import course, submissions


def overview():
    """All assignments: what they are about, how long they take, what they need."""
    rows = []
    for name in course.NAMES:
        facts = course.facts(name)
        chapters = ", ".join(map(str, facts["chapters"]))
        points = sum(points for _, points in facts["tasks"].values())
        rows.append((name.upper(), facts["title"], facts["minutes"], chapters, len(facts["tasks"]), points))
    return show.Table(("", "title", "minutes", "chapters", "tasks", "points"), rows)


def tasks(name):
    """The tasks of an assignment, with their markers and points."""
    found = course.facts(name)["tasks"].items()
    return show.Table(("marker", "task", "points"), [(task, *rest) for task, rest in found])


def mistakes(name):
    """The kept wrong submissions of an assignment, and what each of them loses."""
    most = course.facts(name)["tasks"]
    rows = []
    for wrong in submissions.wrong(name):
        lost = sum(most[task][1] for task in wrong.lost)
        rows.append((wrong.what, ", ".join(task.partition("_")[2] for task in wrong.lost), lost))
    return show.Table(("a submission that ...", "tasks lost", "points lost"), rows)


def cheats():
    """The kept submissions that attack the grader, and the task that each of them loses."""
    rows = [(wrong.what, ", ".join(wrong.lost)) for wrong in submissions.cheats()]
    return show.Table(("a submission of A1 that ...", "loses"), rows)
