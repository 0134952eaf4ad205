"""What the book's pages, the reproduction notebooks and the assignments call, so that they hold no machinery.

============== ====================================================================================
`places`       where the checkout is
`parameters`   what a notebook was called with, and where its results go
`chapter`      values for a chapter's own text
`networks`     float networks of courses and papers, which the tests convert
`inside`       what a running program holds: its codes and sums, operation by operation
`show`         tables and figures that a page and a terminal both show
`exercises`    checkers by chapter, the wrong answers they must reject, and how a function is judged
`records`      tables and statuses, drawn from the records in ``reproductions/results``
`widgets`      the data that the book's JavaScript needs, computed by the package
`pages`        building the book, opening it in a browser, printing the hand-out
`assignments`  making and grading the notebooks of ``book/assignments``
============== ====================================================================================
"""
