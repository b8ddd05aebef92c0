"""A flash sale: a hundred units, ten processes, four hundred buyers.

    python examples/flash_sale.py

The server is the one that SECKILL_REDIS_URL names, else the one on localhost:6379. An ordinary
script, of the kind that used to take a lock, read the stock, compare, write and free the lock;
the import is the only line that knows of seckill.
"""

import multiprocessing
import sys
import time

from seckill import InsufficientInventory, NoInventory, incr_inventory, update_inventory

UNITS = 100
PROCESSES = 10
BUYERS = 40  # of each process


def sell(process: int) -> tuple[int, int]:
    """Serve the buyers of one process, and count how many got a unit and how many did not."""
    sold = refused = 0
    for _ in range(BUYERS):
        try:
            update_inventory("lockname", "inventory", -1)
            sold += 1
        except ValueError:  # 没有库存, 库存不足: what such scripts have always raised
            refused += 1
    print(f"process {process}: {sold} sold, {refused} refused", flush=True)
    return sold, refused


def left() -> int:
    """Ask for more than there can be: the refusal changes nothing, and tells what is left."""
    try:
        update_inventory("lockname", "inventory", -(10**18))
    except InsufficientInventory as refusal:
        return refusal.available
    except NoInventory:
        pass
    return 0


def main() -> None:
    """Put the units on sale, open the doors, and count."""
    incr_inventory("inventory", UNITS)
    offered = left()  # a former run may have left some
    start = time.perf_counter()
    with multiprocessing.Pool(PROCESSES) as pool:
        outcomes = pool.map(sell, range(PROCESSES), chunksize=1)
    seconds = time.perf_counter() - start
    sold, refused = (sum(counts) for counts in zip(*outcomes, strict=True))
    print(f"offered {offered}, sold {sold}, left {left()}, refused {refused}, in {seconds:.2f} s")
    if sold + left() != offered:
        sys.exit("sold and left do not add up to what was offered")


if __name__ == "__main__":
    try:
        main()
    except ConnectionError as error:
        sys.exit(f"no sale without a server: {error}\nName yours in SECKILL_REDIS_URL.")
