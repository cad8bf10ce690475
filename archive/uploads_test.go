package archive_test

import (
	"errors"
	"testing"

	"github.com/bonafide-archive/bonafide/archive"
)

// sized returns n contents of a size, in order.
func sized(n int, size uint32) []archive.Sized {
	all := make([]archive.Sized, n)
	for i := range all {
		all[i] = archive.Sized{Digest: archive.Digest{byte(i >> 8), byte(i)}, Size: size}
	}
	return all
}

func TestUploadsForm(t *testing.T) {
	w := world()
	swapped := sized(2, 1)
	swapped[0], swapped[1] = swapped[1], swapped[0]
	twice := append(sized(1, 1), sized(1, 2)...)
	tests := map[string]struct {
		contents []archive.Sized
		ok       bool
	}{
		"one, empty":   {sized(1, 0), true},
		"as many":      {sized(archive.MaxUploads, 1), true},
		"as large":     {sized(8, archive.MaxUploadsSize/8), true},
		"none":         {nil, false},
		"too many":     {sized(archive.MaxUploads+1, 1), false},
		"too large":    {sized(8, archive.MaxUploadsSize/8+1), false},
		"sum overruns": {sized(archive.MaxUploads, 1<<32-1), false},
		"out of order": {swapped, false},
		"twice":        {twice, false},
	}
	for name, tt := range tests {
		u := archive.SignUploads(w.Writer, w.Roster.ID(), tt.contents)
		got, err := archive.ParseUploads(u.Bytes())
		if tt.ok {
			if err == nil {
				_, err = got.Verify(w.Roster)
			}
			if err != nil || got.Size() != u.Size() {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, archive.ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

func TestUploadsHead(t *testing.T) {
	w := world()
	u := archive.SignUploads(w.Writer, w.Roster.ID(), sized(3, 5))
	b := u.Bytes()
	id, writer, rest, err := archive.UploadsHead(b[:archive.UploadsPrefix])
	if err != nil || id != w.Roster.ID() || writer != u.Writer || rest != len(b)-archive.UploadsPrefix {
		t.Errorf("%s, %s, %d, %v", id, writer, rest, err)
	}
	if n := len(archive.SignUploads(w.Writer, id, sized(archive.MaxUploads, 0)).Bytes()); n != 36_152 { // as wire/SPEC.md says
		t.Errorf("the longest list has %d bytes, want 36152", n)
	}
}
