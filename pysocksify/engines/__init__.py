"""Engines: how a socket call of the target reaches the supervisor. Each turns calls into the supervisor's requests.

None of them knows of SOCKS, chains, rules or DNS, and none imports another.
"""
