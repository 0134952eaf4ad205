"""The wrong answers that the checkers of the exercises must reject, by exercise and by what is wrong.

The workshop's pages name them, and a test hands each to its checker.
"""

from dqt_book.exercises.wrong import (
    chapter01,
    chapter02,
    chapter03,
    chapter04,
    chapter05,
    chapter06,
    chapter07,
    chapter08,
    chapter09,
    chapter10,
    chapter11,
    chapter12,
    chapter13,
    chapter14,
)

CHAPTERS = (
    chapter01,
    chapter02,
    chapter03,
    chapter04,
    chapter05,
    chapter06,
    chapter07,
    chapter08,
    chapter09,
    chapter10,
    chapter11,
    chapter12,
    chapter13,
    chapter14,
)
WRONG = {exercise: answers for chapter in CHAPTERS for exercise, answers in chapter.WRONG.items()}
