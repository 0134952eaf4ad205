"""Checkers of the exercises, one module a chapter, and in `wrong` the answers that each must reject.

`judging` compares an answer with what is expected and names the first wrong element; `emulation` runs the
kernels that an answer may be.
"""
