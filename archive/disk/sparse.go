package disk

import (
	"bytes"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// Hole is the stride, in bytes, in which a SparseWriter leaves out zeros.
	Hole = 64 << 10
	// flushed is after how many bytes they are sent to the disk, so that the last
	// fsync has little left to do.
	flushed = 8 << 20
)

// A SparseWriter writes a file, leaves holes where all is zero, and has the disk
// write while the rest is still to come.
type SparseWriter struct {
	f       *os.File
	at      int64 // end of what was written
	flushed int64 // up to where the disk was told to write
	wrote   func(int64)
}

// NewSparseWriter returns a writer of f from an offset on. It calls wrote, unless
// that is nil, with the length of each piece.
func NewSparseWriter(f *os.File, at int64, wrote func(int64)) *SparseWriter {
	return &SparseWriter{f: f, at: at, flushed: at, wrote: wrote}
}

// Write implements io.Writer.
func (w *SparseWriter) Write(p []byte) (done int, err error) {
	for done < len(p) {
		part := p[done:min(len(p), done+Hole-int(w.at%Hole))]
		if len(part) < Hole || !Zero(part) {
			if _, err := w.f.WriteAt(part, w.at); err != nil {
				return done, err
			}
		}
		done, w.at = done+len(part), w.at+int64(len(part))
		if w.wrote != nil {
			w.wrote(int64(len(part)))
		}
	}
	if w.at-w.flushed < flushed {
		return done, nil
	}
	if err := writeAhead(w.f, w.flushed, w.at-w.flushed); err != nil {
		return done, err
	}
	w.flushed = w.at
	return done, w.End()
}

// writeAhead has the disk begin to write a part of a file. That a file system
// cannot do that is no error; that the disk does not take the bytes is one.
func writeAhead(f *os.File, from, n int64) error {
	err := unix.SyncFileRange(int(f.Fd()), from, n, unix.SYNC_FILE_RANGE_WRITE)
	switch err {
	case unix.EIO, unix.ENOSPC, unix.EDQUOT:
		return os.NewSyscallError("sync_file_range", err)
	}
	return nil
}

// End makes the file as long as what was written, where that ends in a hole.
func (w *SparseWriter) End() error {
	info, err := w.f.Stat()
	if err == nil && info.Size() < w.at {
		err = w.f.Truncate(w.at)
	}
	return err
}

// Zero reports whether all of b is zero.
func Zero(b []byte) bool { return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }
