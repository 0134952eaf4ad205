"""What a program costs, how good it is, and which widths its layers should have.

============== ===============================================================================
`cost`         bit operations, transitions, bytes, by one definition
`allocate`     the best static widths within a budget of bit operations
`report`       how far a program is from its float model, and which layer hurts
`cascade`      looking twice: narrow for all images, wider for the doubtful
`results`      a program run over a data set, counted, and written down with its provenance
`verification` whether a program is the one of a record
`statistics`   intervals, and paired tests of two classifiers or of two methods over seeds
`consistency`  whether a record is as it was written, and its figures agree
============== ===============================================================================
"""
