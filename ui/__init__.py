"""The page: draw on a picture, ask, and see the words and the boxes answer each other.

Talks to the platform only through `services.client`. `app.py` is the Streamlit script, started by `ferret ui`.
"""
