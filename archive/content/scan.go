package content

import (
	"errors"
	"io"
)

// maxScan is how much of a file is looked through. None that Store wrote is
// longer.
const maxScan = 2 * packSize

// window is how much of a pack is read at a time for its headers: several small
// members, and not all of a big one.
const window = 16 << 10

// scanner goes through the members of a pack.
type scanner struct {
	r    io.ReaderAt
	size int64
	buf  []byte // what lies from base on
	base int64
	// proving is set where a header is not enough: in a pack that was being
	// written when the process ended, and in one with bytes that are no member:
	// what looks like one may then be part of a content.
	proving bool
	lost    bool  // met such bytes
	end     int64 // of the last good member
	all     []found
}

// found is a member of a pack.
type found struct {
	member
	at   int64 // of its header
	good bool  // or not looked at
}

// scan calls fn with every member of a pack in order, and returns where the last
// good one ends. With prove, and wherever the pack is damaged, all are read, and
// only those that are right count, but for what lies before the first damage.
// It fails only if the pack cannot be read; then fn has what came before.
func scan(r io.ReaderAt, size int64, prove bool, fn func(found)) (end int64, err error) {
	s := &scanner{r: r, size: min(size, maxScan), proving: prove}
	err = s.pass()
	if err == nil && s.lost && !prove {
		s = &scanner{r: r, size: s.size, proving: true}
		err = s.pass()
	}
	for _, m := range s.all {
		fn(m)
	}
	return s.end, err
}

// pass goes through the pack once, until it is lost unless it proves.
func (s *scanner) pass() error {
	for at := int64(0); at+block <= s.size && (s.proving || !s.lost); {
		m, ok, err := s.member(at)
		if err != nil {
			return err
		}
		if ok {
			s.all = append(s.all, m)
		}
		if !ok || !m.good { // its size may be wrong too: others may lie in it
			s.lost = true
			at += block
			continue
		}
		at += span(m.size)
		s.end = at
	}
	return nil
}

// member returns the member whose header lies at an offset, if there is one.
func (s *scanner) member(at int64) (f found, ok bool, err error) {
	b, err := s.read(at, block)
	if err != nil {
		return f, false, err
	}
	m, ok := parseHeader(b)
	if !ok || at+span(m.size) > s.size {
		return f, false, nil
	}
	f = found{m, at, true}
	if !s.proving {
		return f, true, nil
	}
	b, err = s.read(at, span(m.size))
	f.good = err == nil && m.whole(b)
	return f, f.good || !s.lost, err
}

// read returns n bytes at an offset, which are there unless the file has shrunk.
func (s *scanner) read(at, n int64) ([]byte, error) {
	if at < s.base || at+n > s.base+int64(len(s.buf)) {
		want := min(max(n, window), s.size-at)
		if int64(cap(s.buf)) < want {
			s.buf = make([]byte, want)
		}
		got, err := s.r.ReadAt(s.buf[:want], at)
		s.buf, s.base = s.buf[:got], at
		if int64(got) < n {
			return nil, errors.Join(io.ErrUnexpectedEOF, err)
		}
	}
	return s.buf[at-s.base:][:n], nil
}
