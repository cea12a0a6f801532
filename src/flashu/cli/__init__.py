"""The command line: thin commands over the engine. Nothing here imports torch before a command needs it."""
