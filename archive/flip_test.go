package archive_test

import (
	"bytes"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
)

// Every byte of every value is changed in several ways. The changed bytes must
// be refused, or mean exactly the same: which none does.
func TestFlips(t *testing.T) {
	w := world()
	r, e := w.Roster, w.Newest()
	answer, err := archive.EncodeJSON(answerOf(w))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		bytes  []byte
		accept func(b []byte) error
	}{
		"receipt": {receiptOf(w).Bytes(), func(b []byte) error {
			rc, err := archive.ParseReceipt(b)
			if err == nil {
				_, _, err = rc.Verify(r)
			}
			return err
		}},
		"answer": {answer, func(b []byte) error {
			var a archive.Answer
			err := archive.DecodeJSON(b, &a)
			if err == nil {
				_, err = a.Verify(r, 2, testNonce)
			}
			return err
		}},
		"record": {e.Record.Bytes(), func(b []byte) error {
			_, _, err := archive.VerifyRecord(r, b, e.Certificate.Bytes())
			return err
		}},
		"certificate": {e.Certificate.Bytes(), func(b []byte) error {
			_, _, err := archive.VerifyRecord(r, e.Record.Bytes(), b)
			return err
		}},
		"submission": {submissionOf(w).Bytes(), func(b []byte) error {
			s, err := archive.ParseSubmission(b)
			if err == nil {
				_, err = s.Verify(r)
			}
			return err
		}},
		"upload": {archive.SignUpload(w.Writer, r.ID(), hashOf("x")).Bytes(), func(b []byte) error {
			u, err := archive.ParseUpload(b)
			if err == nil {
				_, err = u.Verify(r)
			}
			return err
		}},
		"uploads": {uploadsOf(w).Bytes(), func(b []byte) error {
			u, err := archive.ParseUploads(b)
			if err == nil {
				_, err = u.Verify(r)
			}
			return err
		}},
		"roster": {r.Bytes(), func(b []byte) error {
			got, err := archive.ParseRoster(b)
			if err == nil && got.ID() == r.ID() {
				return nil
			}
			return fmt.Errorf("another archive")
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := tt.accept(tt.bytes); err != nil {
				t.Fatalf("untouched: %v", err)
			}
			flipAll(t, tt.bytes, tt.accept)
			cutAll(t, tt.bytes, tt.accept)
		})
	}
}

// flipAll changes each byte in turn: its lowest bit, its highest, and in what is
// not text also the bit that tells capitals apart and all of them.
func flipAll(t *testing.T, b []byte, accept func([]byte) error) {
	var wg sync.WaitGroup
	masks := []byte{0x01, 0x80, 0x20, 0xff}
	if utf8.Valid(b) {
		masks = masks[:2] // the checks of text take long
	}
	if archivetest.RaceDetector {
		masks = masks[:1]
	}
	for _, mask := range masks {
		wg.Go(func() {
			c := bytes.Clone(b)
			for i := range c {
				c[i] ^= mask
				if accept(bytes.Clone(c)) == nil {
					t.Errorf("byte %d with %#x flipped is accepted", i, mask)
				}
				c[i] ^= mask
			}
		})
	}
	wg.Wait()
}

// cutAll drops and adds bytes at the end.
func cutAll(t *testing.T, b []byte, accept func([]byte) error) {
	for n := range b {
		if n%7 == 0 && accept(bytes.Clone(b[:n])) == nil {
			t.Errorf("cut to %d of %d bytes is accepted", n, len(b))
		}
	}
	for _, more := range []string{"\n", " ", "\x00", "{}"} {
		if accept(append(bytes.Clone(b), more...)) == nil {
			t.Errorf("with %q after it is accepted", more)
		}
	}
}

// An entry carries no signature: a changed one parses to something else, and
// encodes to the bytes it was parsed from.
func TestEntryFlips(t *testing.T) {
	w := world()
	e, _, err := receiptOf(w).Verify(w.Roster)
	if err != nil {
		t.Fatal(err)
	}
	b := e.Bytes()
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		got, err := archive.ParseEntry(c)
		if err == nil && (reflect.DeepEqual(got, e) || !bytes.Equal(got.Bytes(), c)) {
			t.Errorf("byte %d: %+v", i, got)
		}
	}
}
