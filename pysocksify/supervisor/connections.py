"""The target's connections, from connect() until they stand: direct or held, with the calls that wait for them.

Theory of operation. A connection is known by its socket's SO_COOKIE, which stays the same through dup(), fork() and
SCM_RIGHTS and is never used again. Its states stand in `connection`.

Until the outcome the connection owns a duplicate of the program's descriptor. While that is open the program's
close() doesn't close, so it's closed as soon as the state is RELEASED, UP or FAILED, and holds are given up whose
socket is no longer open in any program (looked for once a second).

What can come late: a signal for a waiting thread (the direct path then becomes a hold, since the program may poll the
socket next), the caller's death (its answer goes nowhere), a second connect() of another thread, a dial's outcome
after the program gave the socket up.
"""

import errno
import os
import socket
from collections.abc import Callable

from pysocksify.address import Address
from pysocksify.errors import DialError
from pysocksify.kernel import Kernel
from pysocksify.linux import connect, dissolve
from pysocksify.reactor import Reactor, Task, Timer
from pysocksify.supervisor import hold as holding
from pysocksify.supervisor.beside import Beside
from pysocksify.supervisor.calls import ERESTARTSYS, LOOK_INTERVAL, Call, Signalled, Signals
from pysocksify.supervisor.connection import (
    Connection,
    Dial,
    State,
    Then,
    Waiter,
    Way,
    cookie_of,
    is_connected,
    send_timeout,
)
from pysocksify.supervisor.direct import DoesNotFit, OwnFault, TargetSocket
from pysocksify.supervisor.openfiles import sockets_open

SWEEP_INTERVAL = 1.0
PEERS_REMEMBERED = 65536  # as many connections at once as a process may have files (nr_open is larger, its use isn't)

KERNEL = Kernel()


class Connections:
    """All connections that were begun through the supervisor.

    `joined(program side, chain side)` is given the two ends of a released connection to relay between;
    `told(connection, way, error)` hears of every outcome.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        signalled: Signalled,
        joined: Callable[[socket.socket, socket.socket], None],
        told: Callable[[Connection, Way, OSError | DialError | None], None],
        programs: Callable[[], list[int]],
        same_process: bool = False,
        kernel: Kernel = KERNEL,
    ) -> None:
        """`programs` says which processes may have the sockets open; `same_process`: this one is among them."""
        self._reactor = reactor
        self._signalled = signalled
        self._joined = joined
        self._told = told
        self._programs = programs
        self._own_duplicates = int(same_process)  # of a connection without an outcome
        self._all: dict[bytes, Connection] = {}
        self._failed = 0
        self._pending: set[Connection] = set()
        self._beside = Beside(reactor, kernel)
        self._signals = Signals()
        self._look: Timer | None = None
        self._sweep: Timer | None = None

    @property
    def pending(self) -> int:
        """How many connections have no outcome yet."""
        return len(self._pending)

    @property
    def delivering(self) -> bool:
        """Whether programs may have sent something to connections that have no outcome yet."""
        return any(connection.state is State.EARLY for connection in self._pending)

    @property
    def failures_kept(self) -> bool:
        """Whether some SO_ERROR is ours to say."""
        return self._failed > 0

    def get(self, cookie: bytes) -> Connection | None:
        """The connection of the socket with this cookie, if it was begun here."""
        return self._all.get(cookie)

    def find(self, sock: socket.socket) -> Connection | None:
        """The connection of this socket, if it was begun here."""
        return self._all.get(cookie_of(sock))

    def begin(
        self,
        call: Call,
        sock: socket.socket,
        cookie: bytes,
        sockaddr: bytes,
        destination: Address,
        dial: Dial,
        then: Then | None = None,
    ) -> None:
        """Connect `sock`, which is taken over and has this cookie, and answer `call` when it's time to."""
        blocking = os.get_blocking(sock.fileno())
        connection = Connection(
            cookie=cookie,
            destination=destination,
            sockaddr=sockaddr,
            dial=dial,
            started=self._reactor.now(),
            sock=sock,
            state=State.DIALLING,
        )
        limit = send_timeout(sock) if blocking else None
        self._remember(connection)
        try:
            self._begin(connection, call, then, blocking, limit)
        except OSError:
            self._settle(connection)
            self._all.pop(cookie, None)
            raise

    def _begin(
        self, connection: Connection, call: Call, then: Then | None, blocking: bool, limit: float | None
    ) -> None:
        if blocking and self._signalled is not Signalled.UNSEEN and limit is None:
            self._wait(connection, call, then, None)
            self._start_direct(connection)
        elif blocking:
            self._wait(connection, call, then, limit)
            self._start_hold(connection, None)
        elif self._start_hold(connection, call):
            connection.unheard = not call.answer(errno.EINPROGRESS)

    def again(self, connection: Connection, call: Call, sock: socket.socket, then: Then | None = None) -> bool:
        """connect() on a socket that was connected before. False: there's nothing left of that, begin anew.

        `sock` is closed unless False is returned.
        """
        state = connection.state
        blocking = os.get_blocking(sock.fileno())
        # the program was faster than the event that says so to us; or it was told early
        if (state is State.HELD or (state is State.EARLY and not blocking)) and is_connected(sock):
            call.answer(connect(sock.fileno(), connection.sockaddr))
            sock.close()
            return True
        if state in (State.DIALLING, State.HELD) or (state is State.EARLY and is_connected(sock)):
            limit = send_timeout(sock) if blocking else None
            if connection.sock is None:
                connection.sock = sock
            else:
                sock.close()
            if blocking:
                self._wait(connection, call, then, limit)
            else:
                unheard, connection.unheard = connection.unheard, False
                call.answer(errno.EINPROGRESS if unheard else errno.EALREADY)
            return True
        if state is State.FAILED:
            error, kernels = connection.error, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.forget(connection)
            dissolve(sock.fileno())
            if not error and not kernels:
                return False
            sock.close()
            call.answer(error or kernels)
            return True
        if not is_connected(sock):
            self.forget(connection)
            return False
        if connection.unheard:
            connection.unheard = not call.answer(0)
        else:
            # the hold address or the first hop: a socket that stands doesn't go anywhere, it says 0 once, then EISCONN
            error = connect(sock.fileno(), connection.sockaddr)
            connection.state = State.UP
            call.answer(error)
        sock.close()
        return True

    def error(self, sock: socket.socket) -> int | None:
        """What SO_ERROR says of this socket, once; None: ask the kernel."""
        if not self._failed:
            return None
        connection = self.find(sock)
        if connection is None or connection.state is not State.FAILED or not connection.error:
            return None
        error, connection.error = connection.error, 0
        self._failed -= 1
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return error

    def forget(self, connection: Connection) -> None:
        """The program dissolved the socket, or begins anew: nothing of the connection is left."""
        if connection.task is not None:
            connection.task.cancel()
            connection.task = None
        if connection.state is State.FAILED and connection.error:
            self._failed -= 1
        if connection.transport is not None:
            connection.transport.put_back()
        if connection.hold is not None and connection.sock is not None:
            holding.put_back(connection.sock, connection.hold)
        if connection.arrival is not None:
            connection.arrival.reset()
        self._answer_all(connection, errno.ECONNABORTED)
        self._settle(connection)
        self._all.pop(connection.cookie, None)

    # the direct path

    def _start_direct(self, connection: Connection) -> None:
        assert connection.sock is not None
        transport = connection.transport = TargetSocket(connection.sock)

        def done(way: Way | None, error: BaseException | None) -> None:
            connection.task = None
            if isinstance(error, DoesNotFit):
                self._hold_instead(connection)
            elif error is None:
                connection.state = State.UP
                transport.put_back()
                self._end(connection, way or (), None)
            else:
                transport.give_up()
                self._end(connection, (), _expected(error))

        # the steps may end at once: what done() does must not be undone by what comes after
        task = Task(self._reactor, connection.dial(transport), done)
        connection.task = task
        task.start()

    def _hold_instead(self, connection: Connection) -> None:
        """Leave the direct path: the dial begins again on a socket of ours, the program's is held meanwhile."""
        if connection.task is not None:
            connection.task.cancel()
            connection.task = None
        assert connection.transport is not None
        connection.transport.give_up()
        connection.transport = None
        self._start_hold(connection, None)

    # held connections

    def _start_hold(self, connection: Connection, call: Call | None) -> bool:
        """Hold the socket and dial beside it. False: it can't be held, and the callers have been told."""
        try:
            self._beside.keep(connection, waits=call is None)
        except OSError as refusal:  # CannotHold; or the supervisor has no descriptor left for its own part of it
            number = refusal.errno or errno.ENETUNREACH
            number = errno.ENOBUFS if number in (errno.EMFILE, errno.ENFILE) else number
            if call is not None:
                call.answer(number)
            if number != errno.EISCONN:
                self._told(connection, (), refusal)
            self._answer_all(connection, number)
            self._settle(connection)
            self._all.pop(connection.cookie, None)
            return False
        self._watch_holds()

        def done(value: tuple[Way, socket.socket, socket.socket] | None, error: BaseException | None) -> None:
            connection.task = None
            if value is None:
                assert error is not None
                self._fail_hold(connection, _expected(error))
            else:
                self._release(connection, *value)

        task = Task(self._reactor, self._beside.dial(connection), done)
        connection.task = task
        task.start()
        return True

    def _release(self, connection: Connection, way: Way, other: socket.socket, chain: socket.socket) -> None:
        self._beside.stand(connection)
        self._end(connection, way, None)
        self._joined(other, chain)

    def _fail_hold(self, connection: Connection, failure: OSError | DialError) -> None:
        sock, hold = connection.sock, connection.hold
        if connection.waiters or hold is None:
            self._beside.give_back(connection)
            self._end(connection, (), failure)
            return
        assert sock is not None
        error = failure.errno or errno.ECONNREFUSED
        kernels = holding.fail(sock, hold, error)
        connection.state = State.FAILED
        connection.error = 0 if kernels else error
        self._failed += not kernels
        self._told(connection, (), failure)
        self._settle(connection)

    # outcomes and waiting calls

    def _end(self, connection: Connection, way: Way, failure: OSError | DialError | None) -> None:
        """The outcome is there: tell whoever waits, and let go of the program's socket."""
        self._told(connection, way, failure)
        if failure is not None:
            self._all.pop(connection.cookie, None)
            self._answer_all(connection, failure.errno or errno.ECONNREFUSED)
        else:
            self._answer_all(connection, 0)
        self._settle(connection)

    def _answer_all(self, connection: Connection, error: int) -> None:
        waiters, connection.waiters = connection.waiters, []
        for waiter in waiters:
            if waiter.timer is not None:
                waiter.timer.cancel()
            if waiter.then is None or error or connection.sock is None:
                connection.unheard = not waiter.call.answer(error) and not error
                continue
            try:
                connected = socket.socket(fileno=os.dup(connection.sock.fileno()))
            except OSError:  # no descriptor left; the connection stands, and the program may send again
                waiter.call.answer(errno.ENOBUFS)
            else:
                waiter.then(connected)

    def _settle(self, connection: Connection) -> None:
        """No more to come: the program's socket is its own again."""
        self._pending.discard(connection)
        connection.hold = connection.transport = connection.arrival = None
        if connection.sock is not None:
            connection.sock.close()
            connection.sock = None

    def _remember(self, connection: Connection) -> None:
        self._all[connection.cookie] = connection
        self._pending.add(connection)
        if len(self._all) > PEERS_REMEMBERED:
            oldest = next(iter(self._all.values()))
            if oldest not in self._pending:
                self.forget(oldest)

    def _wait(
        self,
        connection: Connection,
        call: Call,
        then: Then | None,
        limit: float | None,
    ) -> None:
        waiter = Waiter(call, then)
        connection.waiters.append(waiter)
        if limit is not None:

            def expire() -> None:  # socket(7), SO_SNDTIMEO: EINPROGRESS, and the attempt goes on
                self._let_go(connection, waiter, errno.EINPROGRESS)

            waiter.timer = self._reactor.call_at(self._reactor.now() + limit, expire)
        if self._look is None and self._signalled is Signalled.LOOKED_FOR:
            self._look = self._reactor.call_at(self._reactor.now() + LOOK_INTERVAL, self._look_at_signals)
        self._watch_holds()

    def _look_at_signals(self) -> None:
        """End the waiting calls whose threads have a signal to take."""
        waiting = [(connection, waiter) for connection in self._pending for waiter in connection.waiters]
        if not waiting:
            self._look = None
            return
        began = self._reactor.now()
        ready = self._signals.deliverable([waiter.call.tid for _, waiter in waiting])
        now = self._reactor.now()  # thousands of threads take long to look at: no more than a quarter of the time
        self._look = self._reactor.call_at(now + max(LOOK_INTERVAL, 3 * (now - began)), self._look_at_signals)
        for connection, waiter in waiting:
            if waiter.call.tid in ready and waiter in connection.waiters:
                self._let_go(connection, waiter, ERESTARTSYS)

    def interrupted(self, call: Call) -> None:
        """A signal has ended the wait of `call`: answer it with EINTR, unless it has its answer."""
        for connection in list(self._pending):
            for waiter in connection.waiters:
                if waiter.call is call:
                    self._let_go(connection, waiter, errno.EINTR)
                    return

    def _let_go(self, connection: Connection, waiter: Waiter, error: int) -> None:
        """End the wait of one call. The program may look at its socket next: no handshake may be going on over it."""
        if connection.state is State.DIALLING:
            self._hold_instead(connection)
        if waiter in connection.waiters:
            connection.waiters.remove(waiter)
            if waiter.timer is not None:
                waiter.timer.cancel()
            self._left_alone(connection)
            waiter.call.answer(error)

    def _left_alone(self, connection: Connection) -> None:
        """Where no hold is to be had, a socket that nobody waits for may be polled next: it must not look closed."""
        if connection.waiters or connection.hold is not None or connection.state is not State.HELD:
            return
        try:
            self._beside.enter_early(connection)
        except OSError as failure:
            self._told(connection, (), failure)
            self.forget(connection)

    def _watch_holds(self) -> None:
        if self._sweep is None:
            self._sweep = self._reactor.call_at(self._reactor.now() + SWEEP_INTERVAL, self._sweep_pending)

    def _sweep_pending(self) -> None:
        """Give up what no program has open any more, and forget calls whose threads are gone."""
        self._sweep = None
        if not self._pending:
            return
        self._watch_holds()
        idle = []
        for connection in list(self._pending):
            connection.waiters = [waiter for waiter in connection.waiters if waiter.call.waits()]
            self._left_alone(connection)
            if not connection.waiters and self._reactor.now() - connection.started > SWEEP_INTERVAL:
                idle.append(connection)
        if idle:
            try:
                still_open = sockets_open(self._programs(), self._own_duplicates)
            except OSError:  # no descriptor left to look with: nothing is known
                return
            for connection in idle:
                arrival = connection.arrival
                if connection.sock is not None:
                    if os.fstat(connection.sock.fileno()).st_ino not in still_open:
                        dissolve(connection.sock.fileno())  # it may be on its way to a program by SCM_RIGHTS
                        self.forget(connection)
                elif arrival is not None and arrival.inode not in still_open and arrival.silent:
                    self.forget(connection)


def _expected(error: BaseException) -> OSError | DialError:
    """A dial's failure; anything else is a fault of ours and must be seen."""
    if isinstance(error, TimeoutError) and not error.errno:
        return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    if isinstance(error, OwnFault):
        return OSError(error.errno, str(error))
    if isinstance(error, (OSError, DialError)):
        return error
    raise error
