"""Assignments: `course` makes them, `submissions` keeps right and wrong ones, `tables` shows both.

`marking` grades a class: `collect` finds its notebooks, `repair` puts back what was handed out, `judge` calls
the functions of a student's process, which `room` starts. `grading`, `run_tasks` and ``exercises/judging.py``
are copied beside a student's notebook, `student` and `wire` into the folder where it is graded; these five
import no module of this package.
"""
