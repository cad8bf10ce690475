package cmd

import (
	"net"
	"testing"
)

// Archives that are thrown away do not look where a trial does, and not where another
// already listens.
func TestPassingPorts(t *testing.T) {
	first := passingPorts(8)
	l, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if p := l.Addr().(*net.TCPAddr).Port; p < trialPort+100 {
		t.Errorf("port %d, where trials begin at %d", p, trialPort)
	}
	if second := passingPorts(8); second == first {
		t.Errorf("%s twice", first)
	}
}
