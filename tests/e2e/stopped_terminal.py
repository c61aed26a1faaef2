# SPDX-License-Identifier: Apache-2.0
"""stopped_terminal.py COMMAND...: runs it with standard error on a terminal that is stopped, as by Ctrl-S,
until this process gets SIGUSR1, as by Ctrl-Q."""
import pty
import signal
import subprocess
import sys
import termios

master, slave = pty.openpty()
signal.signal(signal.SIGUSR1, lambda *_: termios.tcflow(slave, termios.TCOON))
termios.tcflow(slave, termios.TCOOFF)
sys.exit(subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave))
