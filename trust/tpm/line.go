package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// A Target says where a TPM is: exactly one of Device and Socket is set.
type Target struct {
	Device string // a kernel device, best the resource manager /dev/tpmrm0
	Socket string // the Unix socket of an swtpm; the path may be longer than 108 bytes

	// Approvals is the directory of the approver and the approvals of a device of
	// profile measured, whose writes read it anew. Empty for profile lock.
	Approvals string
}

const (
	maxResponse = 4096 // longer than any response that a TPM gives
	headerSize  = 10   // tag, size, response code

	// Ranges of handles: TPM_HT_LOADED_SESSION, TPM_HT_TRANSIENT.
	loadedSessions = 0x02000000
	loadedObjects  = 0x80000000

	// patience bounds one operation on a socket, which another client may hold.
	patience = 30 * time.Second
)

// A line opens the TPM for one operation after another. One fd shared by two
// commands gives EBUSY, and an swtpm serves one client at a time: turn is taken
// for the whole of an operation.
type line struct {
	turn   chan struct{}
	closed chan struct{}
	once   sync.Once // closes closed
	device string
	dir    *os.File // of the socket
	name   string   // of the socket, in dir
}

func newLine(t Target) (*line, error) {
	l := &line{turn: make(chan struct{}, 1), closed: make(chan struct{}), device: t.Device}
	if (t.Device == "") == (t.Socket == "") {
		return nil, errors.New("target names neither one device nor one socket")
	}
	if t.Device != "" {
		return l, nil
	}
	dir, err := os.Open(filepath.Dir(t.Socket))
	if err != nil {
		return nil, err
	}
	l.dir, l.name = dir, filepath.Base(t.Socket)
	return l, nil
}

// close waits for the operation under way and refuses all later ones.
func (l *line) close() (err error) {
	l.once.Do(func() {
		close(l.closed)
		l.turn <- struct{}{} // for good
		if l.dir != nil {
			err = l.dir.Close()
		}
	})
	return err
}

// do runs f with a connection of its own, which is gone afterwards.
func (l *line) do(ctx context.Context, f func(transport.TPM) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-l.closed:
		return os.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.device != "" {
		return l.doDevice(ctx, f)
	}
	return l.doSocket(ctx, f)
}

func (l *line) doDevice(ctx context.Context, f func(transport.TPM) error) error {
	c, err := linuxtpm.Open(l.device)
	if err != nil {
		return err
	}
	return errors.Join(f(patient{ctx, c}), c.Close())
}

func (l *line) doSocket(ctx context.Context, f func(transport.TPM) error) error {
	conn, err := dialAt(ctx, l.dir, l.name)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := patient{ctx, socket{conn}}
	if err := errors.Join(unload(c, loadedSessions), unload(c, loadedObjects)); err != nil {
		return inTime(ctx, err)
	}
	return inTime(ctx, f(c))
}

// inTime names the context's end as the cause of an error that it brought about.
func inTime(ctx context.Context, err error) error {
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// dialAt connects to the Unix socket called name in dir, by way of the open
// directory: socket addresses end at 108 bytes, paths do not.
func dialAt(ctx context.Context, dir *os.File, name string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name))
}

// unload ends the sessions, or the objects, that a client left loaded when it was
// killed in the middle of an operation: three of them would fill the TPM, and
// nobody could lock it. A socket has one client, so none of them is in use. A
// kernel device's resource manager does this by itself.
func unload(c transport.TPM, kind uint32) error {
	rsp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapHandles, Property: kind, PropertyCount: 64,
	}.Execute(c)
	if err != nil {
		return err
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return err
	}
	for _, h := range list.Handle {
		if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(c); err != nil {
			return err
		}
	}
	return nil
}

// A patient TPM is asked again as long as it says that it has not begun: it tests
// itself, is busy, or spares its non-volatile memory (Part 2, 6.6.3: such a command
// may be sent again as it is).
type patient struct {
	ctx context.Context // ends the asking
	transport.TPM
}

const longestPause = time.Second // between two times that a TPM is asked

// Send implements transport.TPM.
func (p patient) Send(command []byte) ([]byte, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, longestPause) {
		rsp, err := p.TPM.Send(command)
		if err != nil || !again(rsp) {
			return rsp, err
		}
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
			return nil, p.ctx.Err()
		}
	}
}

// again says whether a response means that the command was not begun.
func again(rsp []byte) bool {
	if len(rsp) < headerSize {
		return false
	}
	switch tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}

// A socket sends one command at a time over a stream.
type socket struct{ conn net.Conn }

// Send implements transport.TPM.
func (s socket) Send(command []byte) ([]byte, error) {
	if _, err := s.conn.Write(command); err != nil {
		return nil, err
	}
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(s.conn, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("tpm response of %d bytes", size)
	}
	b := append(head, make([]byte, size-headerSize)...)
	_, err := io.ReadFull(s.conn, b[headerSize:])
	return b, err
}
