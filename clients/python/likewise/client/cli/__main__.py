"""`python -m likewise.client.cli`, for interpreters without the script on their path."""

from likewise.client.cli import main

main()
