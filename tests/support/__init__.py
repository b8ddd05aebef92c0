"""What the tests stand on: real servers, a lossy proxy, the old script, fresh interpreters."""
