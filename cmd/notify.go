package cmd

import (
	"net"
	"os"
)

// notify tells systemd how this process is, if systemd has started it and asked
// (sd_notify(3)). Nothing depends on its being heard.
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	conn, err := net.Dial("unixgram", name)
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}
