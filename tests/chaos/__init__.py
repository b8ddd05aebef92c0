"""Chaos: real processes sell on real servers, to which the worst is done; a ledger outside counts.

    schedule    what happens, and in which order: from one seed
    worlds      the deployments, and what can be done to each
    crew        the processes that sell, of several kinds; they are killed and stopped, too
    sellers     what such a process does
    ledger      what each of them asked for and was told, in a file that survives it
    checker     whether a correct counter with a floor could have told that
    report      faults, calls, outcomes; oversold, lost, double

`python -m chaos` runs them all (`make chaos`). The seed makes the same things happen in the same
order to the same processes; what meets what is up to the machine.
"""
