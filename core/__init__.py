"""Names: the frozen types, events, commands and errors that cross Penstock's rooms. Standard library only."""
