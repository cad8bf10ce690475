package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// ListenUnix listens on the socket dir/name, mode 0600, and takes the place of
// one that was left there. Paths may be longer than the 108 bytes that a socket
// address holds. Closing the listener removes the socket.
func ListenUnix(dir, name string) (net.Listener, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	l, err := listenUnix(dir, name)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return l, nil
}

// listenUnix binds in a directory that nobody else can enter, and moves the
// socket to its place once its mode is set.
func listenUnix(dir, name string) (net.Listener, error) {
	tmp, err := os.MkdirTemp(dir, ".socket-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	d, err := os.Open(tmp)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: through(d, name)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	path := filepath.Join(dir, name)
	err = os.Chmod(filepath.Join(tmp, name), 0o600)
	if err == nil {
		err = os.Rename(filepath.Join(tmp, name), path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unixListener{UnixListener: l, path: path}, nil
}

type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		os.Remove(l.path)
	}
	return err
}

// DialUnix connects to the socket dir/name, whatever the length of its path.
func DialUnix(ctx context.Context, dir, name string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", through(d, name))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", filepath.Join(dir, name), err)
	}
	return c, nil
}

func through(d *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)
}
