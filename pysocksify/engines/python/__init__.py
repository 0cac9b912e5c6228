"""The python engine: Python's own `socket` module asks the supervisor, in every Python that the target starts.

Reading order: `asking` (one request, one reply), `layers` (who is asked now, by which thread), `addresses`, `naming`
and `sockets` (what stands in for the functions and methods), `patching` (putting them in place and back), `uvloops`
and `spawning` (what is refused). These are loaded into programs, and import next to nothing. In a program that says
`with pysocksify.socksify(…)`: `block`, which has `service` (the supervisor in a thread) or `portable` (where there's no
Linux) answer. For `--engine python`: `fit`, `engine`, `serving`, and in the programs `injected`.
"""
