"""The commands of the command line: what each takes, and what it tells. The work is elsewhere, imported when it is asked for."""
