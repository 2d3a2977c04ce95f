"""A database that knows what must be true of it: transfers between accounts leave their sum as it is.

usage: ledger.py run DATABASE SECONDS    makes it, and transfers for so long
       ledger.py check DATABASE
"""

import hashlib
import random
import sqlite3
import sys
import time

ACCOUNTS = 2000
EACH = 1000


def run(path: str, seconds: float) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(
        """
        PRAGMA synchronous = FULL;
        CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
        CREATE TABLE receipt (id INTEGER PRIMARY KEY, body BLOB NOT NULL, hash BLOB NOT NULL);
        """
    )
    database.execute("BEGIN")
    database.executemany("INSERT INTO account VALUES (?, ?)", ((n, EACH) for n in range(ACCOUNTS)))
    database.execute("COMMIT")
    chance = random.Random(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        database.execute("BEGIN")
        for _ in range(20):
            giver, taker, amount = chance.randrange(ACCOUNTS), chance.randrange(ACCOUNTS), chance.randrange(100)
            database.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, giver))
            database.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, taker))
            body = chance.randbytes(chance.randrange(2000)) + b"receipt " * chance.randrange(500)
            row = (chance.randrange(4000), body, hashlib.sha256(body).digest())
            database.execute("INSERT OR REPLACE INTO receipt VALUES (?, ?, ?)", row)
        database.execute("ROLLBACK" if chance.random() < 0.1 else "COMMIT")
    database.close()


def check(path: str) -> None:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    [(said,)] = database.execute("PRAGMA integrity_check").fetchall()
    [(balance,)] = database.execute("SELECT sum(balance) FROM account").fetchall()
    assert said == "ok", said
    assert balance == ACCOUNTS * EACH, balance
    receipts = 0
    for body, digest in database.execute("SELECT body, hash FROM receipt"):
        assert hashlib.sha256(body).digest() == digest
        receipts += 1
    assert receipts > 0


match sys.argv[1:]:
    case ["run", path, seconds]:
        run(path, float(seconds))
        check(path)
    case ["check", path]:
        check(path)
    case _:
        sys.exit(__doc__)
