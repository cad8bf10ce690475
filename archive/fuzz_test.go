package archive_test

import (
	"bytes"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

// fuzz checks that whatever a decoder accepts encodes to the same bytes.
func fuzz(f *testing.F, seed []byte, parse func([]byte) (interface{ Bytes() []byte }, error)) {
	f.Add(seed)
	f.Add(seed[:len(seed)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parse(b)
		if err == nil && !bytes.Equal(v.Bytes(), b) {
			t.Errorf("accepted %q, which encodes to %q", b, v.Bytes())
		}
	})
}

func FuzzReceipt(f *testing.F) {
	w := world()
	fuzz(f, receiptOf(w).Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		rc, err := archive.ParseReceipt(b)
		if err == nil {
			rc.Verify(w.Roster) // must not panic
		}
		return rc, err
	})
}

func FuzzRecord(f *testing.F) {
	w := world()
	f.Add(w.Epochs[0].Record.Bytes())
	fuzz(f, w.Newest().Record.Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		return parsed(archive.ParseRecord(b))
	})
}

func FuzzCertificate(f *testing.F) {
	w := world()
	rec := w.Newest().Record
	fuzz(f, w.Newest().Certificate.Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		c, err := archive.ParseCertificate(b)
		if err == nil {
			c.Verify(w.Roster, rec)
		}
		return c, err
	})
}

func FuzzSubmission(f *testing.F) {
	w := world()
	fuzz(f, submissionOf(w).Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		s, err := archive.ParseSubmission(b)
		if err == nil {
			s.Verify(w.Roster)
		}
		return s, err
	})
}

func FuzzUpload(f *testing.F) {
	w := world()
	fuzz(f, archive.SignUpload(w.Writer, w.Roster.ID(), hashOf("x")).Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		return parsed(archive.ParseUpload(b))
	})
}

func FuzzUploads(f *testing.F) {
	w := world()
	fuzz(f, uploadsOf(w).Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		u, err := archive.ParseUploads(b)
		if err == nil {
			u.Verify(w.Roster)
		}
		return u, err
	})
}

func FuzzEntry(f *testing.F) {
	fuzz(f, archive.Entry{Content: hashOf("x"), Epoch: 7}.Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		return parsed(archive.ParseEntry(b))
	})
}

func FuzzRoster(f *testing.F) {
	fuzz(f, world().Roster.Bytes(), func(b []byte) (interface{ Bytes() []byte }, error) {
		return archive.ParseRoster(b)
	})
}

func FuzzAnswer(f *testing.F) {
	w := world()
	seed, err := archive.EncodeJSON(answerOf(w))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var a archive.Answer
		if archive.DecodeJSON(b, &a) != nil {
			return
		}
		if again, err := archive.EncodeJSON(a); err != nil || !bytes.Equal(again, b) {
			t.Errorf("accepted %q, which encodes to %q", b, again)
		}
		a.Verify(w.Roster, a.Replica, testNonce)
	})
}

func FuzzName(f *testing.F) {
	for _, n := range append(goodNames, badNames...) {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if archive.Name(s).Check() != nil {
			return
		}
		if archive.CheckPrefix(s) != nil {
			t.Errorf("name %q is no prefix of itself", s)
		}
		n, _ := archive.NormalizeName(s)
		if again, changed := archive.NormalizeName(string(n)); changed || again != n {
			t.Errorf("%q normalises twice", s)
		}
	})
}

func FuzzSchedule(f *testing.F) {
	for _, tt := range schedules {
		f.Add(string(tt.s))
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 100 || archive.Schedule(s).Check() != nil {
			return
		}
		at := tuesday
		next := archive.Schedule(s).Next(at)
		if !next.IsZero() && !next.After(at) {
			t.Errorf("%q: next after %s is %s", s, at, next)
		}
	})
}

func parsed[T interface{ Bytes() []byte }](v T, err error) (interface{ Bytes() []byte }, error) {
	return v, err
}
