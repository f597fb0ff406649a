"""Trajectories and attention -> measures, figures and the report.

    information.py        mutual information in nats on held-out rows
    known_answers.py      tasks with known answers, and those of a map's own rows and features
    estimate_mi.py        command: trajectories -> a map of what two times share
    profile_attention.py  command: attention of the mixing classifier -> profiles over time
    claims.py             what a study is held to, judged from the numbers on disk
    page.py               pieces of one self-contained HTML page
    write_report.py       command: a study's folder -> report.html

Nothing here is imported by another folder, and nothing but the doors of `diffusion_model` is imported from outside.
"""
