"""Rules: how a module of each type is run under the noise of many members."""
