"""Trajectories -> accuracies and attention.

mixing.py    heads: classifiers of one time, and of all times together; hideable times
fitting.py   many fits of one head at once; validation chooses
stores.py plans.py   stores whose labels can be learned; which fits a command asks for, and the cells they fill
filing.py    what a group of fits leaves on disk: cells and their protocol, splits, attention
classify.py  command: store of representations -> one accuracy a cell, attention over the times
tabulate.py  command: accuracies of one or more runs -> figures, tables, summaries with paired intervals
settings.py  runs that differ in their seed alone; what tells the others apart
accuracies.py summaries.py   cells -> scores; what validation chose, and what it comes to
bootstrap.py intervals over encoders, head seeds and test images
accuracy_tables.py texts.py charts.py   what stands in the tables; Markdown, LaTeX, CSV; figures

Nothing here is imported by another folder: what this one makes is read from disk.
"""
