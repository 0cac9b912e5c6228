"""Where a connection goes: chains of proxies, the rules that choose one, and the addresses that stand for names.

No I/O: clock and dice are passed in.
"""
