package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// A TLS record holds 16 KiB, and crypto/tls writes and reads each by itself. Of
// long messages, bulkConn writes many records together and readAhead reads some.

// bulkConn is a client's connection for long messages.
type bulkConn struct {
	*tls.Conn
	below *gather
}

// dialBulk returns how an HTTP/1.1 transport makes such connections.
func dialBulk(d *net.Dialer, config *tls.Config) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, d.Timeout)
		defer cancel()
		raw, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		below := &gather{Conn: raw}
		c := &bulkConn{tls.Client(below, config), below}
		if err := c.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return c, nil
	}
}

// Write implements net.Conn. The system has all of b when it returns.
func (c *bulkConn) Write(b []byte) (int, error) {
	c.below.hold()
	n, err := c.Conn.Write(b)
	if failed := c.below.release(); err == nil {
		err = failed
	}
	return n, err
}

// gather keeps what is written while it is held, up to gatherSize bytes.
type gather struct {
	net.Conn

	mu   sync.Mutex // the reader of a TLS connection may answer a message
	held bool
	buf  []byte
}

const gatherSize = 256 << 10

func (g *gather) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = true
}

func (g *gather) release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = false
	return g.flush()
}

// Write implements net.Conn.
func (g *gather) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.held {
		return g.Conn.Write(b)
	}
	if len(g.buf)+len(b) > gatherSize {
		if err := g.flush(); err != nil {
			return 0, err
		}
	}
	g.buf = append(g.buf, b...)
	return len(b), nil
}

func (g *gather) flush() error {
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}

// ReadAhead returns a listener whose connections read more at a time than a TLS
// record, once they read long ones.
func ReadAhead(l net.Listener) net.Listener { return readAheadListener{l} }

type readAheadListener struct{ net.Listener }

// Accept implements net.Listener.
func (l readAheadListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &readAhead{Conn: c}, nil
}

type readAhead struct {
	net.Conn
	buf *bufio.Reader // nil: no long record was read yet
}

const (
	readAheadSize = 64 << 10
	longRead      = 8 << 10
)

// Read implements net.Conn.
func (c *readAhead) Read(b []byte) (int, error) {
	if c.buf == nil {
		if len(b) < longRead {
			return c.Conn.Read(b)
		}
		c.buf = bufio.NewReaderSize(c.Conn, readAheadSize)
	}
	return c.buf.Read(b)
}
