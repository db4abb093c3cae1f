package main

import (
	"net"
	"os"
)

// notifySystemd tells the service manager, if there is one, how far this process is.
func notifySystemd(state string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	c, err := net.Dial("unixgram", socket)
	if err != nil {
		return // a service manager that does not listen is no reason to stop
	}
	defer c.Close()
	_, _ = c.Write([]byte(state)) //nolint:errcheck // likewise
}
