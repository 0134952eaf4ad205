"""The book as pages.

`build` builds it, `execution` runs its cells, `browser` opens it, `report` says what it weighs and what
axe-core finds in it, `hand_out` prints, `reading` says how long its chapters take.
"""
