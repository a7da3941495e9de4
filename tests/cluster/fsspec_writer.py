"""Another process: unpickles a file system, reads with it, and begins a file that it never closes."""

import os
import pickle
import sys
import time


def main() -> None:
    fs = pickle.loads(bytes.fromhex(sys.argv[1]))
    assert fs.cat_file(sys.argv[2]) == b"hello"
    file = fs.open(sys.argv[3], "wb")
    file.write(os.urandom(10 << 20))
    print("written", flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main()
