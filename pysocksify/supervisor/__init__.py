"""The supervisor: the target's ancestor, which turns its caught socket calls into dials, relays and answers.

`processes` is about processes only: the link to the front, reaping, signals. Nothing here knows how a call was caught.
"""
