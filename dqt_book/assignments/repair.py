"""A student's notebook with everything but the answers as it was handed out."""

import copy

import nbformat


def marks_of(cell):
    marks = cell.get("metadata", {}).get("nbgrader", {})
    return marks if isinstance(marks, dict) else {}


def grade_id(cell):
    found = marks_of(cell).get("grade_id")
    return found if isinstance(found, str) else None


def repaired(released, handed_in):
    """(notebook, what was put right): the cells of `released`, answers and own cells of `handed_in`.

    A given cell that is missing, doubled or changed is as it was handed out. A cell with a name that is not
    one of the notebook's, or has it a second time, is one of the student's own, and runs where it stands.
    """
    given = {grade_id(cell): cell for cell in released.cells if grade_id(cell)}
    seen, cells, notes = set(), [], []
    for cell in handed_in.cells:
        name = grade_id(cell)
        if name in given and name not in seen:
            seen.add(name)
            kept = copy.deepcopy(given[name])
            if marks_of(kept).get("solution"):
                kept.source = cell.source
            cells.append(kept)
            continue
        if name:
            what = f"has the name {name} a second time" if name in seen else f"is named {name}, as none is"
            notes.append(f"a cell {what}")
            if marks_of(given.get(name, {})).get("locked"):
                continue  # a check or a given cell, pasted: once is enough
        cells.append(own(cell))
    for name in given:
        if name not in seen:
            notes.append(f"{name} was missing")
            _put_back(cells, [*given], given[name])
    made = copy.deepcopy(released)
    made.cells = cells
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return made, notes


def own(cell):
    kinds = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    source = cell.get("source", "")
    return kinds.get(cell.get("cell_type"), nbformat.v4.new_raw_cell)(source)


def _put_back(cells, order, given):
    """Insert a cell behind the one that it followed; an answer as a remark, lest its stub undo another."""
    kept = copy.deepcopy(given)
    if marks_of(kept).get("solution"):
        kept.source = "# this cell was not in the notebook that was handed in"
    before = order[: order.index(grade_id(given))]
    places = [i for i, cell in enumerate(cells) if grade_id(cell) in before]
    at = places[-1] + 1 if places else 0
    if marks_of(kept).get("grade"):
        # the function it checks may be in a cell of the student's own: those come first
        while at < len(cells) and not grade_id(cells[at]):
            at += 1
    cells.insert(at, kept)
