"""Builders of grounded data like the paper's GRIT (section 4), which was never published.

    a data set as downloaded --reader--> Scenes --tasks, negatives, instructions--> Records, in shards

`sources.py` lists the data sets, one reader a file; `scene.py` is what they all become; `templates.py`, `tasks.py`,
`negatives.py` and `instructions.py` turn a scene into conversations; `shards.py` runs it all, resumably.
"""
