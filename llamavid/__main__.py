"""`python -m llamavid` is the command line."""

from llamavid.cli import main

main(prog_name="llamavid")
