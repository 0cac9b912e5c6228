"""How a program hands its own sockets over: what the engines share that work inside the program, preload and python.

`wire` requests and replies, both ways; `listening` the supervisor's end. The preload shim has its end in C.
"""
