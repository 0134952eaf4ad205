"""Assignments: `course` makes and grades them, `submissions` keeps right and wrong ones, `tables` shows both.

`grading`, `run_tasks` and ``exercises/judging.py`` are copied beside a student's notebook, and import no
module of this package.
"""
