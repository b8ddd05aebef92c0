"""The benchmark harness behind ``make bench``: ``python -m benches`` from the repository's top.

Every figure of the first table is a ratio. Both sides of a row run in one go on one machine, in
turns, several rounds long; the ratio is taken in each round and the table shows the median of the
rounds and their range. A run whose stock and sales do not add up gives no figure at all.

The second table tells what a crowd of asyncio tasks costs, next to what asyncio itself costs: the
same crowd on plain futures. The third is about locks: ratios again, and how fair they are. The
fourth is about more than one server: what three primaries sell more than one does, and what it
costs to be told only of what a replica or the disk has.

    rows.py        what is compared with what, and the floors and goals
    sides.py       one sale, as each library makes it
    aio_sides.py   the same, awaited
    worker.py      the process that is measured: warm up, wait for the word, sell, report
    aio_worker.py  the same, with asyncio tasks in place of threads
    rates.py       sales per second: workers started together, or redis-benchmark
    locks.py       what is measured of locks, and its rows
    lock_sides.py  a lock, as each library has it
    lock_worker.py the process that takes locks: alone, or a crowd on one of them
    handoff.py     from one's release of a lock to the other's acquire
    startup.py     what `import seckill` adds to a bare interpreter
    figures.py     what a crowd of waiting tasks costs: memory, a blocked loop, the server's time
    crowd.py       the process that such a crowd is in
    deployments.py clusters, a primary with its replica, a server with a file: started and ended
    deployed.py    a process that sells on one of these, and what that took it and the servers
    primaries.py   many stocks on three primaries and on one, and redis-benchmark on the same
    safety.py      wait_replicas and wait_aof, and how many WAITs that takes
    call.py        the script call that the other side sends: the project's own
    server.py      a private server on loopback
    machine.py     what it ran on
    report.py      the tables and the JSON
"""
