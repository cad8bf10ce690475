package client

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest/forge"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// listedAt lists what there was in an epoch.
func (b *bed) listedAt(t *testing.T, at archive.Epoch, prefix string, want error) (got []archive.Name) {
	t.Helper()
	rec, err := b.Client.ListAt(t.Context(), at, prefix, func(_, _ uint64) {}, func(n archive.Name, e archive.Entry) error {
		got = append(got, n)
		return nil
	})
	wantErr(t, err, want)
	if err == nil && rec.Epoch != at {
		t.Errorf("record of epoch %d, want %d", rec.Epoch, at)
	}
	return got
}

func TestListAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []archive.Name
		for i := range 300 {
			names = append(names, archive.Name(fmt.Sprintf("n%03d", i)))
		}
		b := newBed(t, "", names...)
		b.Advance(b.wall(), nil, forge.Bind("m", "x"), forge.Bind("n000.5", "x"))
		b.Advance(b.wall(), nil, forge.Bind("n299.5", "x"))
		b.fakes[0].lieHistory = func(rs []wire.SignedRecord) []wire.SignedRecord { rs[0].Certificate[60] ^= 1; return rs }
		b.fakes[1].lieHistory = func([]wire.SignedRecord) []wire.SignedRecord { return nil }
		for _, tt := range []struct {
			at     archive.Epoch
			prefix string
			want   []archive.Name
		}{
			{0, "", nil},
			{1, "", names},
			{1, "m", nil},
			{1, "n29", names[290:]},
			{2, "n000", []archive.Name{"n000", "n000.5"}},
			{3, "n299", []archive.Name{"n299", "n299.5"}},
		} {
			if got := b.listedAt(t, tt.at, tt.prefix, nil); !slices.Equal(got, tt.want) {
				t.Errorf("epoch %d, %q: %d names, want %d", tt.at, tt.prefix, len(got), len(tt.want))
			}
		}
		time.Sleep(48 * time.Hour) // what was does not become stale
		if got := b.listedAt(t, 1, "", nil); !slices.Equal(got, names) {
			t.Errorf("later: %d names", len(got))
		}
		for _, f := range b.fakes {
			f.lieHistory = nil
		}
		b.listedAt(t, 4, "", ErrNotYet)
	})
}

// What claims to have been bound earlier than it was does not fit the root that was
// certified then, even if a later epoch was certified with it.
func TestListAtFindsWhatWasPlanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, "", "a", "b")
		planted := archive.Entry{Content: forge.Bind("ab", "x").Content, Epoch: 1}
		if err := b.Newest().Tree.Put([]byte("ab"), planted.Bytes()); err != nil {
			t.Fatal(err)
		}
		b.Advance(b.wall(), nil, forge.Bind("c", "x"))
		if got := b.listedAt(t, 1, "", ErrIntegrity); got != nil {
			t.Errorf("listed %v", got)
		}
		if got := b.listedAt(t, 2, "", nil); len(got) != 4 {
			t.Errorf("newest: %v", got)
		}
	})
}
