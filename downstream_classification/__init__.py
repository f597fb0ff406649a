"""Trajectories -> accuracies and attention.

mixing.py    heads: classifiers of one time, and of all times together; hideable times
fitting.py   many fits of one head at once; validation chooses
classify.py  command: store of representations -> one accuracy a cell, attention over the times
tabulate.py  command: accuracies -> figure, table, summary with paired intervals

Nothing here is imported by another folder: what this one makes is read from disk.
"""
