package cmd

import (
	"io"
	"os"
	"sync"
)

// maxLog bounds a log file; the one before it is kept as well.
const maxLog = 4 << 20

// logFile is a log of bounded size: when it is full it becomes NAME.old, and a
// new one begins. Writing to it never fails: a full disk must not stop a
// replica from locking its device.
type logFile struct {
	name string
	also io.Writer // gets everything too, if set

	mu   sync.Mutex // guards all below
	file *os.File
	size int64
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.also != nil {
		_, _ = l.also.Write(p)
	}
	if l.file == nil || l.size+int64(len(p)) > maxLog {
		l.open()
	}
	if l.file != nil {
		n, _ := l.file.Write(p)
		l.size += int64(n)
	}
	return len(p), nil
}

// open begins a new file if the one there is full.
func (l *logFile) open() {
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	if at, err := os.Stat(l.name); err == nil && at.Size() > maxLog/2 {
		_ = os.Rename(l.name, l.name+".old")
	}
	f, err := os.OpenFile(l.name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	l.file, l.size = f, 0
	if at, err := f.Stat(); err == nil {
		l.size = at.Size()
	}
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
