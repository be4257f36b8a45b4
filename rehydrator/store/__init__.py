"""Where bytes lie: files and directories of this machine."""
